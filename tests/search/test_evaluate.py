import numpy as np
import pytest

from fourm_lite.errors import FourMError
from fourm_lite.search.evaluate import (
    CaptionPack,
    caption_items,
    embed_pack,
    evaluate_retrieval,
    evaluate_steps,
    steps_lines,
)

from .conftest import write_pack


def test_ranks_are_those_of_a_brute_force_over_centred_vectors(space, pack, pipe):
    report = evaluate_retrieval(space, pack, "test", draws=20)

    data = CaptionPack.read(pack, "test")
    photos = [p.open_image() for p in data.photos]
    images = space.raw_items([{"rgb": p} for p in photos])[:, 0]
    texts = space.raw_items([{"caption": c} for c in data.captions])[:, 0]
    mean = images.mean(axis=0)
    a = (texts - mean) / np.linalg.norm(texts - mean, axis=1, keepdims=True)
    b = (images - mean) / np.linalg.norm(images - mean, axis=1, keepdims=True)
    scores = a @ b.T
    ranks = [1 + int((s > s[o]).sum()) for s, o in zip(scores, data.owner, strict=True)]
    # twins among drawn captions tie exactly; they never share a photo, so ranks are unchanged
    assert report["text_to_image"]["R@5"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert report["text_to_image"]["median_rank"] == np.median(ranks)
    assert set(report) == {"text_to_image", "image_to_text", "protocol"}
    protocol = report["protocol"]
    assert (protocol["split"], protocol["photos"], protocol["queries_text"]) == ("test", 12, 24)
    assert protocol["score"] == "centred cosine, mean of the gallery"
    assert protocol["gallery"] == "model"


def test_reranking_reports_both_stages_and_where_its_weights_come_from(space, pack):
    report = evaluate_retrieval(space, pack, "test", rerank=4, draws=10)
    given = evaluate_retrieval(space, pack, "test", rerank=4, weights={"cosine": 1.0}, draws=10)

    assert report["protocol"]["rerank_weights_from"] == "fitted on the split 'val'"
    assert set(report["protocol"]["rerank_weights"]["text_to_image"]) == {
        "cosine", "codes", "caption",
    }  # fmt: skip
    # reranking by the cosine alone changes nothing
    plain = given["before_rerank"]["text_to_image"]
    assert given["text_to_image"]["R@1"] == plain["R@1"]
    assert given["text_to_image"]["median_rank"] == plain["median_rank"]
    assert report["before_rerank"] == given["before_rerank"]


def test_reranking_deeper_than_the_gallery_is_a_full_ranking_by_likelihood(space, pack):
    report = evaluate_retrieval(space, pack, "test", rerank=99, weights={"codes": 1.0}, draws=5)

    data = CaptionPack.read(pack, "test")
    codes = space.embed_pictures([p.open_image() for p in data.photos])[1]
    log_p = space.pipe.score(
        {"vector_global": [row.tolist() for row in codes]}, [{"caption": c} for c in data.captions]
    )
    own = log_p[np.arange(len(log_p)), data.owner]
    others = np.arange(12)[None] != data.owner[:, None]
    ranks = 1 + ((log_p >= own[:, None] - 1e-6) & others).sum(axis=1)
    assert report["text_to_image"]["median_rank"] == pytest.approx(np.median(ranks), abs=0.5)


def test_long_captions_are_cut_and_counted(tmp_path, space):
    folder = write_pack(tmp_path, 3)
    line = (folder / "captions.jsonl").read_text(encoding="utf-8")
    long = line.replace("two dogs", "two dogs " * 40)
    (folder / "captions.jsonl").write_text(long, encoding="utf-8")
    pack = CaptionPack.read(folder, "test")

    items, cut = caption_items(pack, space)

    assert cut == long.count("two dogs " * 40)
    assert space.embed_items(items).shape == (6, 10)


def test_without_centring_the_protocol_says_so(space, pack):
    data = embed_pack(CaptionPack.read(pack, "val"), space, center=False)
    report = evaluate_retrieval(space, pack, "val", center=False, draws=5)

    assert np.allclose(data.texts, space.pipe.embed(list(data.items)), atol=1e-5)
    assert report["protocol"]["score"] == "cosine"
    assert not report["protocol"]["center"]


def test_steps_have_a_point_for_each_way_and_number(space, pack):
    report = evaluate_steps(
        space, pack, "test", steps=(1, 2), decodes=("argmax", "expected"), most=7, draws=10
    )

    settings = [(p["decode"], p["steps"]) for p in report["points"]]
    assert settings == [("argmax", 1), ("argmax", 2), ("expected", 1), ("expected", 2)]
    assert all(p["interval"]["R@10"][0] <= p["R@10"] <= p["interval"]["R@10"][1]
               for p in report["points"])  # fmt: skip
    assert report["protocol"]["queries_text"] == 7
    assert [x for x, _ in steps_lines(report)["expected"]] == [1, 2]


def test_a_split_that_is_not_there_is_named(pack):
    with pytest.raises(FourMError, match=r"'tset'.*Did you mean 'test'"):
        CaptionPack.read(pack, "tset")
