import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import photo

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.evaluate.caption_sets import captions_of
from fourm_lite.search import spaces
from fourm_lite.search.calibration.answer_features import DISPERSION, LIKELIHOOD
from fourm_lite.search.calibration.calibrate import RERANKED, Judgements, calibrate_index
from fourm_lite.search.engine import Search
from fourm_lite.search.gallery import Ingest, index_photos, open_index
from fourm_lite.search.index.index import Index
from fourm_lite.search.likelihood_scores import Likelihood
from fourm_lite.search.query import Query
from fourm_lite.search.rerank_weights import words_share
from fourm_lite.search.search_file import FittedSearch
from fourm_lite.search.spaces import open_space
from fourm_lite.search.whitening import Centre

from .conftest import CAPTIONS

WORDS = ("a", "red", "blue", "two", "dogs", "circle")


@pytest.fixture(scope="module")
def search(index_folder):
    return Search.open(index_folder)


def test_an_index_says_who_made_it_and_opens_its_own_model(search, model_folder):
    manifest = search.index.manifest

    assert manifest.model == str(model_folder.resolve())
    assert manifest.space == "tok_vector_global"
    assert set(manifest.fingerprints) == {"tokenizer", "model", "gallery"}
    assert manifest.extra["gallery"] == "model"
    assert manifest.preprocessing["size"] == 32
    assert len(search.index) == 20


def test_a_photo_of_the_gallery_finds_itself(search):
    hits = search(rgb=photo(3), k=2)

    assert hits.ids[0] in {"test03", "val03"}
    assert hits.scores[0] == pytest.approx(1, abs=1e-5)
    assert hits.columns["captions"][0]
    assert not set(hits.columns) & {"codes", "vector", "row_hash"}


def test_hits_can_be_filtered_by_columns(search):
    hits = search(caption="two dogs", k=20, where="split = 'val'")

    assert len(hits) == 8
    assert all(str(i).startswith("val") for i in hits.ids)


def test_reranking_changes_the_order_of_the_first_only(search):
    first = search(caption="two dogs", k=20)

    again = search(caption="two dogs", k=20, rerank=6, weights={"codes": 1.0})

    assert sorted(again.ids[:6]) == sorted(first.ids[:6])
    assert again.ids[6:] == first.ids[6:]
    assert np.all(np.diff(again.scores[:6]) <= 0)
    assert np.isnan(again.scores[6:]).all()
    assert again.p_right is None


@pytest.mark.parametrize("depth", [1, 7, 30])
@pytest.mark.parametrize("asked", [{"caption": "two dogs"}, {"rgb": photo(3)}])
def test_where_nothing_was_fitted_reranking_says_so_and_keeps_the_order(
    search, asked, depth, caplog
):
    plain = search(asked, k=20)

    again = search(asked, k=20, rerank=depth)

    assert again.ids == plain.ids
    assert np.array_equal(again.columns["cosine"], plain.scores)
    assert "the order by cosine stays" in caplog.text


def test_the_weights_kept_beside_a_model_order_its_hits(search, caplog):
    weights = {"pixels": {"text_to_image": {"caption": 1.0}}, "codes": {}}
    taught = replace(
        search.space, fitted=FittedSearch(search.space.target.name, "", weights, "pixels")
    )
    asked = replace(search, space=replace(taught, fitted=replace(taught.fitted, fitted_on="here")))

    found = asked(caption="two dogs", k=20, rerank=20)

    same = search(
        caption="two dogs", k=20, rerank=20, weights={"caption": 1.0}, rerank_given="pixels"
    )
    assert found.ids == same.ids
    assert not caplog.records
    # for codes nothing was fitted
    plain = asked(caption="two dogs", k=20, rerank=20, rerank_given="codes")
    assert plain.ids == search(caption="two dogs", k=20).ids
    assert "the order by cosine stays" in caplog.text


@pytest.fixture
def by_pixels(tmp_path, space):
    """A search of six photos that reranks by pixels, and the folder of the photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        photo(i).save(folder / f"{i}.png")
    index = open_index(tmp_path / "idx", space)
    index_photos([folder], index, space)
    by = {"text_to_image": {"caption": 1.0}}
    learnt = FittedSearch(space.target.name, "here", {"pixels": by, "codes": by}, "pixels")
    return Search(index, replace(space, fitted=learnt)), folder


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"no picture")])
def test_a_hit_whose_photo_is_gone_keeps_its_place_and_the_others_are_reranked(
    by_pixels, damage, caplog
):
    search, folder = by_pixels
    once, whole = search(caption="two dogs"), search(caption="two dogs", rerank=6)
    place = once.ids.index("2.png")
    damage(folder / "2.png")

    for given in (None, "pixels"):
        found = search(caption="two dogs", rerank=6, rerank_given=given)

        assert found.ids[place] == "2.png"
        assert [i for i in found.ids if i != "2.png"] == [i for i in whole.ids if i != "2.png"]
        assert np.flatnonzero(np.isnan(found.scores)).tolist() == [place]
    assert "1 of 6 hits keep their place" in caplog.text
    assert "2.png" in caplog.text


def test_where_all_photos_are_gone_words_are_said_from_the_codes_and_this_is_told(
    by_pixels, caplog
):
    search, folder = by_pixels
    for path in folder.iterdir():
        path.unlink()

    found = search(caption="two dogs", rerank=6)

    assert found.ids == search(caption="two dogs", rerank=6, rerank_given="codes").ids
    assert "from the hits' codes instead" in caplog.text
    with pytest.raises(FourMError, match=r"\.png"):
        search(caption="two dogs", rerank=6, rerank_given="pixels")


def test_another_space_is_refused_with_both_named(tmp_path, pipe, index_folder):
    index = Index.create(tmp_path / "other", space="tok_dinov2_global", width=10)
    index.add(["a"], np.ones((1, 10)))

    with pytest.raises(ConfigError, match=r"'tok_dinov2_global'.*'tok_vector_global'"):
        Search.open(tmp_path / "other", pipe)
    with pytest.raises(ConfigError, match="names no model"):
        Search.open(tmp_path / "other")
    with pytest.raises(ConfigError, match="there is no index"):
        Search.open(tmp_path / "nothing")


def test_rows_that_others_added_are_compared_as_their_space_says(tmp_path, pipe, monkeypatch):
    plain = open_space(pipe, center=False)
    mean = np.linspace(-1, 1, plain.width, dtype=np.float32)
    monkeypatch.setattr(spaces, "tokenizer_centre", lambda _: Centre(mean, "tokenizer"))
    items = [{"rgb": photo(i)} for i in range(4)]
    index = Index.create(tmp_path / "own", space=plain.name)
    index.add(["a", "b", "c", "d"], pipe.embed(items))

    for model in (pipe, plain):
        hits = Search.open(tmp_path / "own", model)(items[2], k=1)
        assert hits.ids == ["c"]
        assert hits.scores[0] == pytest.approx(1, abs=1e-4)
    assert open_space(pipe).name != plain.name
    with pytest.raises(ConfigError, match="open already: leave out decode"):
        Search.open(tmp_path / "own", plain, decode="argmax")


def test_the_same_name_with_another_tokenizer_is_another_space(tmp_path, pipe):
    made = {"tokenizer": "0123456789abcdef"}
    Index.create(tmp_path / "other", space="tok_vector_global", fingerprints=made)

    with pytest.raises(ConfigError, match=r"0123456789abcdef.*the query is of"):
        Search.open(tmp_path / "other", pipe)


def test_an_index_is_not_continued_by_another_model(index_folder, model_folder):
    other = open_space(model_folder, decode="argmax")

    with pytest.raises(ConfigError, match="made with model"):
        open_index(index_folder, other)


def test_a_codes_only_index_is_searched_by_decoding(tmp_path, model_folder, pack, space):
    made = open_index(tmp_path / "codes", open_space(model_folder), codes_only=True)
    index_photos([pack / "images"], made, space, Ingest(batch_size=4))

    hits = Search.open(tmp_path / "codes")(rgb=photo(5), k=3)

    assert len(hits) == 3
    pictures = [photo(i) for i in range(12)]
    codes = space.encode_document(pictures)[1]
    scores = space.decode_codes(codes) @ Query.of(rgb=photo(5)).vector(space)
    assert hits.scores[0] == pytest.approx(scores.max(), abs=1e-5)


def test_what_changed_is_embedded_again_and_what_is_gone_can_be_pruned(tmp_path, space):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        photo(i).save(folder / f"{i}.png")
    index = open_index(tmp_path / "idx", space)
    index_photos([folder], index, space)
    photo(9).save(folder / "1.png")
    (folder / "2.png").unlink()

    report = index_photos([folder], index, space, Ingest(prune=True))

    assert (report.added, report.changed, report.unchanged, report.removed) == (0, 1, 2, 1)
    assert Search(index, space)(rgb=photo(9), k=1).ids == ["1.png"]


def test_a_calibrated_index_says_how_sure_it_is(tmp_path, space, pack):
    index = open_index(tmp_path / "idx", space)
    index_photos([pack / "captions.jsonl"], index, space)
    asked = [{"rgb": photo(i)} for i in range(8)] + [{"caption": w} for w in WORDS]
    right = [[f"val{i:02d}", f"test{i:02d}"] for i in range(8)] + [["nothing"]] * 6
    truth = Judgements(asked, right)

    done = calibrate_index(index, space, truth)

    assert (done.report.queries, done.weights, done.reranked) == (14, None, None)
    assert index.manifest.calibration["names"] == ["score", "margin", DISPERSION]
    found = Search(index, space)(rgb=photo(1), k=1)
    assert found.p_right > 0.5
    assert found.good_match


def test_captions_calibrate_with_the_likelihood_and_fit_weights(tmp_path, space, pack):
    index = open_index(tmp_path / "idx", space)
    index_photos([pack / "images"], index, space)
    truth = captions_of(index, space, pack, "test")
    assert len(truth.items) == 24
    # half of the captions are told to be answered rightly, whatever comes first
    first = index.search_many(space.encode_query(truth.items), 1, columns=[])
    right = [h.ids if i % 2 else ["no"] for i, h in enumerate(first)]

    done = calibrate_index(index, space, Judgements(truth.items, right), depth=5)

    manifest = Index.open(tmp_path / "idx").manifest
    assert manifest.calibration["names"] == ["score", "margin", DISPERSION, LIKELIHOOD]
    assert manifest.extra[RERANKED]["names"] == ["score", "margin", "cosine", DISPERSION]
    assert set(done.weights) == {"cosine", "codes", "prior", "caption"}
    assert min(done.weights.values()) >= 0
    assert done.reranked.queries == 24
    search = Search.open(tmp_path / "idx", space.pipe)
    assert 0 <= search(caption="two dogs", k=1).p_right <= 1
    assert search(rgb=photo(0), k=1).p_right is None  # no words, no likelihood of words
    reranked = search(caption="two dogs", k=3, rerank=5)
    assert len(reranked) == 3
    assert 0 <= reranked.p_right <= 1
    assert reranked.good_match == (reranked.p_right >= 0.5)
    # another order than the one that was learnt has no probability
    assert search(caption="two dogs", k=3, rerank=4).p_right is None
    assert search(caption="two dogs", k=3, rerank=5, weights={"codes": 1.0}).p_right is None


@pytest.mark.parametrize("given", ["pixels", "both"])
def test_words_can_be_said_from_the_photos_of_the_hits(tmp_path, space, pack, given):
    index = open_index(tmp_path / "idx", space)
    index_photos([pack / "images"], index, space)
    search = Search(index, space)

    hits = search(caption="two dogs", k=4, rerank=4, weights={"caption": 1.0}, rerank_given=given)

    photos = [Image.open(pack / "images" / name) for name in hits.ids]
    items = [{"rgb": p} for p in photos]
    if given == "both":
        codes = index.codes(hits.ids).astype(int).tolist()
        items = [{**item, "vector_global": row} for item, row in zip(items, codes, strict=True)]
    said = space.pipe.score({"caption": "two dogs"}, items)[:, 0]
    share = words_share(Likelihood.of(space).texts(space.pipe.read({"caption": "two dogs"})))
    assert np.allclose(hits.scores, share[0] * said, atol=1e-4)
    assert np.all(np.diff(hits.scores) <= 0)


def test_a_photo_that_is_gone_stops_reranking_by_pixels(tmp_path, space):
    photo(0).save(tmp_path / "a.png")
    index = open_index(tmp_path / "idx", space)
    index_photos([tmp_path / "a.png"], index, space)
    (tmp_path / "a.png").unlink()

    with pytest.raises(ConfigError, match="cannot be read any more"):
        Search(index, space)(
            caption="two dogs", k=1, rerank=1, weights={"caption": 1.0}, rerank_given="pixels"
        )


def test_the_spread_is_that_of_sampled_vectors(space):
    items = [{"caption": "two dogs"}, {"rgb": photo(1)}]

    found = space.dispersion(items, samples=6)

    drawn = space.pipe.embed_samples(items, 6)
    assert np.allclose(found, 1 - np.linalg.norm(drawn.mean(axis=1), axis=-1), atol=1e-5)
    assert (found > 0).all()


def test_a_photo_is_the_row_with_the_most_folders_in_common(tmp_path, space):
    lines = []
    for number, name in enumerate(("1.png", "dogs/1.png")):
        place = tmp_path / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(place)
        texts = [CAPTIONS[number]]
        lines.append({"id": f"p{number}", "file": f"images/{name}", "captions": texts})
    for line in lines:
        line["split"] = "test"
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    index = open_index(tmp_path / "idx", space)
    index_photos([tmp_path / "images"], index, space)

    truth = captions_of(index, space, tmp_path, "test")

    assert truth.right == [["1.png"], ["dogs/1.png"]]
    index.delete(["dogs/1.png"])
    with pytest.raises(ConfigError, match=r"would all be the row '1.png'"):
        captions_of(index, space, tmp_path, "test")


def test_captions_of_photos_that_are_not_indexed_are_refused(tmp_path, space, pack):
    index = Index.create(tmp_path / "empty", space=space.name)
    index.add(["x"], np.ones((1, 10)))

    with pytest.raises(ConfigError, match=r"none of the 12 photos.*'x'"):
        captions_of(index, space, pack, "test")


def test_persons_names_of_modalities_ask_as_those_of_the_model(search):
    assert search(image=photo(3), k=2).ids == search(rgb=photo(3), k=2).ids
    assert search(text="two dogs").ids == search(caption="two dogs").ids


NOT_DOGS = {"caption": "two dogs"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"without": NOT_DOGS}, r"'without' is no modality.*Query\.of\(.*without=.*weights="),
        ({"without": NOT_DOGS, "weights": {"not-caption": 1}}, r"Query\.of\(.*without="),
        ({"not_text": "two dogs"}, r"'not_text' is no modality.*Query\.of\("),
        ({"weights": {"caption": 2}}, r"rerank=100.*Query\.of\(\.\.\., weights="),
        ({"like": "test03"}, r"Query\.of\(row=search\.index\.vectors\(\[ID\]\)\[0\]\)"),
        ({"query": Query.of(caption="a red circle")}, "a Query is whole, put caption into it"),
        ({"query": np.ones(8, np.float32)}, r"numbers of shape \[8\].*\.search\(vector\)"),
        ({"query": [0.5, 0.5]}, r"numbers of shape \[2\].*open_vectors"),
    ],
)
def test_what_belongs_to_a_query_or_to_an_index_is_told_where_it_belongs(search, given, message):
    with pytest.raises(ConfigError, match=message):
        search(**{"caption": "a red circle"} | given)


def test_more_like_a_row_is_asked_as_the_error_says(search):
    assert search(Query.of(row=search.index.vectors(["test03"])[0]), k=3).ids[0] == "test03"
