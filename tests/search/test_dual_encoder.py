"""A dual encoder from a saved folder through every verb: index, search, evaluate, Python."""

import json

import numpy as np
import pytest
from tiny_networks import clip, save_network
from verbs import run

from fourm_lite import open_space
from fourm_lite.demo.examples import drawings
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError
from fourm_lite.search.engine import Search, space_of
from fourm_lite.search.index.manifest import Manifest

DRAWN = list(drawings(6, size=64))


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return save_network(clip, tmp_path_factory.mktemp("twin") / "clip")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Six drawings with their captions, as a split for measuring."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "images").mkdir()
    rows = []
    for name, caption, picture in DRAWN:
        picture.save(folder / "images" / name)
        row = {"id": name, "file": f"images/{name}", "captions": [caption], "split": "test"}
        rows.append(json.dumps(row))
    (folder / "captions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cosines(twin):
    """Captions against drawings, by the library's own vectors as `test_hf` has shown them."""
    embedder = load_embedder(f"hf:{twin}")
    words = embedder.embed_text([d.caption for d in DRAWN])
    return words @ embedder.embed_image([d.picture for d in DRAWN]).T


def told(capsys, *words):
    code, out, err = run(capsys, *words)
    assert code == 0, err
    return out


def test_index_and_search_by_words_a_picture_and_both(
    capsys, monkeypatch, tmp_path, twin, pack, cosines
):
    monkeypatch.chdir(twin.parent)
    spec = f"hf:{twin.name}"  # a relative folder: the index must find it from elsewhere too
    made = json.loads(
        told(capsys, "index", pack / "images", "-o", tmp_path / "idx", "--model", spec, "--json")
    )
    monkeypatch.chdir(tmp_path)
    ask = ("search", tmp_path / "idx", "--json")

    words = json.loads(told(capsys, *ask, "--caption", DRAWN[2].caption))
    same = json.loads(told(capsys, *ask, "--caption", DRAWN[2].caption, "--model", f"hf:{twin}"))
    photo = json.loads(told(capsys, *ask, "--image", pack / "images" / DRAWN[4].name, "-k", 1))
    both = json.loads(
        told(
            capsys, *ask, "--image", pack / "images" / DRAWN[4].name, "--caption",
            DRAWN[2].caption, "--not-caption", DRAWN[0].caption,
        )
    )  # fmt: skip

    assert (made["rows"], made["added"]) == (6, 6)
    order = np.argsort(-cosines[2], kind="stable")
    assert [hit["id"] for hit in words["hits"]] == [DRAWN[i].name for i in order]
    scores = [hit["score"] for hit in words["hits"]]
    assert scores == pytest.approx(cosines[2][order].tolist(), abs=1e-5)
    assert same["hits"] == words["hits"]
    assert photo["hits"][0]["id"] == DRAWN[4].name
    assert photo["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert len(both["hits"]) == 6


def test_a_twin_encoder_searches_an_index_that_a_4m_model_made_of_its_vectors(twin):
    made = Manifest(
        space=open_space(f"hf:{twin}").name, model="mini",
        extra={"target": "t", "decode": "argmax", "steps": 3, "centre": "none"},
    )  # fmt: skip

    assert space_of(made, f"hf:{twin}").name == made.space
    with pytest.raises(ConfigError, match="decode: for 4M models"):
        space_of(made, f"hf:{twin}", decode="argmax")


def test_own_vectors_are_searched(capsys, tmp_path, twin, cosines):
    vectors = load_embedder(f"hf:{twin}").embed_image([d.picture for d in DRAWN], normalize=False)
    np.save(tmp_path / "v.npy", vectors)

    found = json.loads(
        told(
            capsys, "search", tmp_path / "v.npy", "--model", f"hf:{twin}", "--caption",
            DRAWN[1].caption, "--json",
        )
    )  # fmt: skip

    order = np.argsort(-cosines[1], kind="stable")
    assert [hit["id"] for hit in found["hits"]] == order.tolist()
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == pytest.approx(cosines[1][order].tolist(), abs=1e-5)


def test_retrieval_is_measured_by_its_own_cosines(capsys, tmp_path, twin, pack, cosines):
    out = tmp_path / "report.json"

    shown = told(
        capsys, "evaluate", "retrieval", "--model", f"hf:{twin}", "--data", pack, "--json", out
    )

    report = json.loads(out.read_text(encoding="utf-8"))
    ranks = 1 + (cosines > np.diag(cosines)[:, None]).sum(axis=1)
    assert report["text_to_image"]["R@1"] == pytest.approx((ranks <= 1).mean())
    assert report["text_to_image"]["R@5"] == pytest.approx((ranks <= 5).mean())
    assert report["text_to_image"]["MRR"] == pytest.approx((1 / ranks).mean())
    assert "text to image" in " ".join(shown.split())


def test_a_space_embeds_items_pictures_and_opens_its_index(tmp_path, twin, pack, cosines):
    from fourm_lite.search.gallery import index_photos, open_index

    space = open_space(f"hf:{twin}")
    items = [{"caption": d.caption} for d in DRAWN] + [{"rgb": d.picture} for d in DRAWN]
    told = []

    vectors = space.encode_query(items, batch_size=4, progress=lambda *n: told.append(n))
    single = np.concatenate([space.encode_query([item]) for item in items])
    gallery, codes = space.encode_document([d.picture for d in DRAWN], batch_size=4)

    assert vectors.shape == (12, space.width)
    assert np.allclose(vectors, single, atol=1e-5)
    assert np.allclose(vectors[:6] @ gallery.T, cosines, atol=1e-5)
    assert np.allclose(vectors[6:], gallery, atol=1e-5)
    assert codes is None
    assert told[-1] == (12, 12)
    index_photos([pack / "captions.jsonl"], open_index(tmp_path / "idx", space), space)
    assert Search.open(tmp_path / "idx")(rgb=DRAWN[3].picture, k=1).ids == [DRAWN[3].name]
