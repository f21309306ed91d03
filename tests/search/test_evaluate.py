from dataclasses import replace

import numpy as np
import pytest
import torch
from documented import example
from tiny_networks import clip, save_network

from fourm_lite.batch import TokenBatch
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.rerankers import load_reranker
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.evaluate import retrieval as evaluate
from fourm_lite.evaluate.caption_sets import CaptionPack, caption_items, embed_pack, protocol_of
from fourm_lite.evaluate.embedding_steps import evaluate_steps, steps_lines
from fourm_lite.evaluate.pair_scores import Direction, PairScores
from fourm_lite.evaluate.retrieval import Reranking, depth_lines, evaluate_retrieval
from fourm_lite.model.likelihood import sequence_logits
from fourm_lite.search.search_file import FittedSearch

from .conftest import write_pack


def test_ranks_are_those_of_a_brute_force_over_centred_vectors(space, pack, pipe):
    report = evaluate_retrieval(space, pack, "test", draws=20)

    data = CaptionPack.read(pack, "test")
    photos = [p.open_image() for p in data.photos]
    images = space.raw_queries([{"rgb": p} for p in photos])[:, 0]
    texts = space.raw_queries([{"caption": c} for c in data.captions])[:, 0]
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
    how = Reranking(4, fit_split="val")
    report = evaluate_retrieval(space, pack, "test", rerank=how, draws=10)
    given = evaluate_retrieval(space, pack, "test", rerank=Reranking(4, {"cosine": 1.0}), draws=10)

    assert report["protocol"]["rerank_weights_from"] == "fitted on the split 'val'"
    assert set(report["protocol"]["rerank_weights"]["text_to_image"]) == {
        "cosine", "codes", "caption", "prior",
    }  # fmt: skip
    fits = report["protocol"]["rerank_fits"]
    assert set(fits) == {"codes", "pixels", "both"}
    chosen = report["protocol"]["rerank_given"]
    assert fits[chosen] > max(fits.values()) - 0.04
    assert chosen == "codes" or fits[chosen] > fits["codes"] + 0.02
    # reranking by the cosine alone changes nothing
    plain = given["before_rerank"]["text_to_image"]
    assert given["text_to_image"]["R@1"] == plain["R@1"]
    assert given["text_to_image"]["median_rank"] == plain["median_rank"]
    assert report["before_rerank"] == given["before_rerank"]


def test_another_network_reranks_in_both_directions(space, pack, tmp_path):
    source = f"hf:{save_network(clip, tmp_path)}"
    data, judge = CaptionPack.read(pack, "test"), load_embedder(source)
    cosines = judge.embed_text(data.captions) @ judge.embed_image(data.pictures_at(slice(None))).T

    how, named = Reranking(12, depths=(3,)), load_reranker(source)
    report = evaluate_retrieval(space, pack, "test", rerank=how, reranker=named, draws=5)

    # all photos are reranked, so what is left of the first order is nothing
    right = cosines[np.arange(len(cosines)), data.owner]
    ranks = 1 + (cosines > right[:, None]).sum(axis=1)
    assert report["text_to_image"]["median_rank"] == np.median(ranks)
    assert report["text_to_image"]["R@5"] == pytest.approx(np.mean(ranks <= 5))
    best = data.owner[cosines.argmax(axis=0)] == np.arange(len(data.photos))
    assert report["protocol"]["reranker"] == source
    assert report["by_depth"][0]["depth"] == 3
    assert report["by_depth"][0]["text_to_image"] != report["text_to_image"]
    whole = evaluate_retrieval(space, pack, "test", rerank=24, reranker=named, draws=5)
    assert whole["image_to_text"]["R@1"] == pytest.approx(best.mean())


def test_no_weights_are_fitted_unless_a_split_is_named(space, pack, caplog):
    report = evaluate_retrieval(space, pack, "test", rerank=6, draws=5)

    assert report["protocol"]["rerank_weights_from"] == "none fitted"
    assert "the order by cosine stays" in caplog.text
    for name in ("text_to_image", "image_to_text"):
        assert report[name] == report["before_rerank"][name]
    kept = FittedSearch(
        space.target.name, "here", {"pixels": {"text_to_image": {"codes": 1.0}}}, "pixels"
    )
    taught = evaluate_retrieval(replace(space, fitted=kept), pack, "test", rerank=6, draws=5)
    told = taught["protocol"]
    assert (told["rerank_weights_from"], told["rerank_given"]) == (
        "kept beside the model: here", "pixels",
    )  # fmt: skip
    assert taught["text_to_image"] != report["text_to_image"]
    with pytest.raises(ConfigError, match="the split that is measured"):
        evaluate_retrieval(space, pack, "val", rerank=Reranking(4, fit_split="val"))


@pytest.mark.parametrize("center", [True, False])
def test_weights_are_fitted_on_cosines_of_the_kind_that_they_weigh(
    space, pack, center, monkeypatch
):
    seen = {}

    def embed(split, *args, **options):
        seen[split.split] = embed_pack(split, *args, **options)
        return seen[split.split]

    monkeypatch.setattr(evaluate, "embed_pack", embed)
    how = Reranking(3, fit_split="val")
    evaluate_retrieval(space, pack, "test", center=center, rerank=how, draws=5)

    val, test = seen["val"].space.centre, seen["test"].space.centre
    if center:  # each split by its own mean: nothing of the test photos reaches the fit
        alone = embed_pack(CaptionPack.read(pack, "val"), space)
        assert np.array_equal(val.mean, alone.space.centre.mean)
    else:
        assert val.mean is None
        assert test.mean is None


def test_reranking_deeper_than_the_gallery_is_a_full_ranking_by_likelihood(space, pack):
    report = evaluate_retrieval(space, pack, "test", rerank=Reranking(99, {"codes": 1.0}), draws=5)

    data = CaptionPack.read(pack, "test")
    codes = space.encode_document([p.open_image() for p in data.photos])[1]
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
    assert space.encode_query(items).shape == (6, 10)


def test_a_caption_that_the_model_cannot_read_is_answered_wrongly_and_stops_nothing(
    tmp_path, space
):
    folder = write_pack(tmp_path, 3)
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8")
    (folder / "captions.jsonl").write_text(lines.replace("two dogs", "\u72ac \u732b", 1), "utf-8")

    report = evaluate_retrieval(space, folder, "test", draws=5)

    assert report["protocol"]["queries_text"] == 6


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
    assert [x for x, *_ in steps_lines(report)["expected"]] == [1, 2]


def test_a_split_that_is_not_there_is_named(pack):
    with pytest.raises(FourMError, match=r"'tset'.*Did you mean 'test'"):
        CaptionPack.read(pack, "tset")


def test_figures_by_depth_begin_with_the_cosine_and_end_with_the_deepest(space, pack):
    weights = {"cosine": 1.0, "codes": 3.0, "caption": 1.0, "prior": 0.5}

    report = evaluate_retrieval(
        space, pack, "test", rerank=Reranking(0, weights, depths=(6, 0, 3)), draws=5
    )

    assert report["protocol"]["rerank_depth"] == 6
    assert [point["depth"] for point in report["by_depth"]] == [0, 3, 6]
    first, middle, last = report["by_depth"]
    alone = evaluate_retrieval(space, pack, "test", rerank=Reranking(3, weights), draws=5)
    for name in ("text_to_image", "image_to_text"):
        assert first[name] == report["before_rerank"][name]
        assert middle[name] == alone[name]
        assert last[name] == report[name]
    lines = depth_lines(report)
    assert [point[0] for point in lines["text to image R@1"]] == [0, 3, 6]
    assert all(low <= y <= high for _, y, low, high in lines["text to image R@1"])


def test_a_caption_that_is_likely_anyway_is_held_back_by_its_prior(space, pack):
    data = embed_pack(CaptionPack.read(pack, "test"), space)
    pairs = PairScores.of(space, data.items, data.codes, data.texts, data.images)
    by_photo = Direction(data.pack.owner, False)

    found = pairs.rescore({"caption": 1.0, "prior": 1.0}, by_photo, 99)(0, np.arange(5))

    texts = list(data.pack.captions[:5])
    said = space.pipe.score({"caption": texts}, {"vector_global": data.codes[0].tolist()})[0]
    own = pairs.likelihood.text_prior([t for t in pairs.texts if t is not None])[:5]
    assert np.allclose(found, said - own, atol=1e-4)
    # what is said of nothing is what a decoder without any context says
    model, ids = space.pipe.model, pairs.texts[0]
    with torch.inference_mode():
        empty = model.encode(TokenBatch({}), batch_size=1).context
        log_p = sequence_logits(model, "caption", ids[None, :-1], empty)[0].log_softmax(dim=-1)
    assert own[0] == pytest.approx(float(log_p.gather(1, ids[1:, None]).mean()), abs=1e-4)


def test_the_documented_evaluation_ranks_every_captions_own_photo(space, pack):
    measure = example(
        "evaluate_median_rank",
        np=np, CaptionPack=CaptionPack, embed_pack=embed_pack, protocol_of=protocol_of,
    )  # fmt: skip

    found = measure(space, pack, "test")

    figures = evaluate_retrieval(space, pack, "test", draws=5)["text_to_image"]
    assert found["median_rank"] == pytest.approx(figures["median_rank"], abs=0.5)
    assert found["protocol"]["photos"] == 12
