"""Hits of an index reranked by a cross-encoder that looks at their photos."""

import numpy as np
import pytest
from tiny_networks import blip, save_network, vilt
from tiny_pipeline import photo

from fourm_lite.embedders.rerankers import load_reranker
from fourm_lite.errors import ConfigError
from fourm_lite.search.engine import Search
from fourm_lite.search.index.index import Index
from fourm_lite.search.query import Query

WORDS = "a red circle"


@pytest.fixture(scope="module")
def search(index_folder):
    return Search.open(index_folder)


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    return save_network(blip, tmp_path_factory.mktemp("blip"))


@pytest.mark.parametrize("build", [blip, vilt])
def test_the_first_hits_stand_in_the_cross_encoders_order(search, build, tmp_path):
    source = f"hf:{save_network(build, tmp_path)}"
    first = search(caption=WORDS, k=20)

    again = search(caption=WORDS, k=20, rerank=18, reranker=source)

    uris = first.columns["uri"][:18]  # more than are open at once
    scores = load_reranker(source).score(WORDS, uris)
    order = np.argsort(-scores, kind="stable")
    assert again.ids == [first.ids[i] for i in order] + first.ids[18:]
    assert np.allclose(again.scores[:18], scores[order], atol=1e-5)
    assert np.isnan(again.scores[18:]).all()
    assert np.ptp(scores) > 1e-4
    assert again.p_right is None
    assert sorted(again.columns["cosine"], reverse=True) == pytest.approx(first.scores.tolist())


def test_an_open_cross_encoder_and_any_function_do_too(search, blip_folder):
    opened = load_reranker(str(blip_folder))
    named = search(caption=WORDS, rgb=photo(2), k=9, rerank=5, reranker=f"hf:{blip_folder}")

    same = search(caption=WORDS, rgb=photo(2), k=9, rerank=5, reranker=opened)
    by_age = search(
        caption=WORDS, k=9, rerank=5,
        reranker=lambda item, hits: np.arange(len(hits)) * (item["caption"] == WORDS),
    )  # fmt: skip

    assert same.ids == named.ids
    assert by_age.ids[:5] == search(caption=WORDS, k=9).ids[:5][::-1]


def test_photos_inside_a_tar_are_opened_where_their_rows_say(tmp_path, space, blip_folder):
    import tarfile

    from fourm_lite.search.gallery import index_photos, open_index

    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        for i in range(4):
            photo(i).save(tmp_path / f"{i}.png")
            tar.add(tmp_path / f"{i}.png", f"{i}.png")
    index = open_index(tmp_path / "idx", space)
    index_photos([tmp_path / "p.tar"], index, space)

    hits = Search(index, space)(caption=WORDS, k=4, rerank=4, reranker=f"hf:{blip_folder}")

    scores = load_reranker(str(blip_folder)).score(WORDS, [photo(i) for i in range(4)])
    assert np.allclose(hits.scores, np.sort(scores)[::-1], atol=1e-5)


def test_what_it_cannot_judge_is_refused_with_advice(
    search, space, index_folder, blip_folder, tmp_path
):
    named = {"k": 3, "rerank": 3, "reranker": f"hf:{blip_folder}"}

    with pytest.raises(ConfigError, match=r"needs a caption, it has \['rgb'\]"):
        search(rgb=photo(1), **named)
    with pytest.raises(ConfigError, match="say how many"):
        search(caption=WORDS, reranker=f"hf:{blip_folder}")
    with pytest.raises(ConfigError, match=r"weights belongs to reranking by likelihood"):
        search(caption=WORDS, weights={"codes": 1.0}, **named)
    with pytest.raises(ConfigError, match=r"wanted, not only"):
        search(Query.of(without={"caption": WORDS}), **named)

    bare = Index.create(tmp_path / "bare", space=space.name, width=space.width)
    bare.add(["a", "b"], np.eye(2, space.width))
    with pytest.raises(ConfigError, match=r"rows name none \(column uri\); index the photos"):
        Search(bare, space)(caption=WORDS, **named)
    gone = Index.create(tmp_path / "gone", space=space.name, width=space.width)
    gone.add(["a"], np.ones((1, space.width)), uri=[str(tmp_path / "gone.png")])
    with pytest.raises(ConfigError, match=r"gone\.png cannot be read any more"):
        Search(gone, space)(caption=WORDS, **named)
