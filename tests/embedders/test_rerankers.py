"""Matching cross-encoders from saved folders against the library's own calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import blip, clip, save_network, transformers, vilt

from fourm_lite.embedders.load import load_embedder, wrap_callable
from fourm_lite.embedders.rerankers import EncoderReranker, load_reranker
from fourm_lite.errors import ConfigError

CLOSE = {"atol": 1e-5, "rtol": 0}
MODELS = {"blip": blip, "vilt": vilt}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, build in MODELS.items():
            model, processor, score = build()
            folder = tmp_path_factory.mktemp(name)
            model.eval().save_pretrained(folder)
            processor.save_pretrained(folder)
            made[name] = folder, model, processor, score
    return made


def theirs(made, text, image) -> float:
    _, model, processor, score = made
    with torch.inference_mode():
        return float(score(model(**processor(images=image, text=text, return_tensors="pt")))[0])


@pytest.mark.parametrize("name", MODELS)
def test_scores_equal_the_librarys_single_and_batched(name, folders, photos, texts):
    want = np.array([[theirs(folders[name], t, p) for p in photos] for t in texts])

    reranker = load_reranker(f"hf:{folders[name][0]}")

    for text, row in zip(texts, want, strict=True):
        assert np.allclose(reranker.score(text, photos), row, **CLOSE)
        assert np.allclose(reranker.score(text, photos, batch_size=1), row, **CLOSE)
    for photo, column in zip(photos, want.T, strict=True):
        assert np.allclose(reranker.score(texts, photo), column, **CLOSE)
    assert np.allclose(reranker.score(texts, photos[:3]), np.diag(want[:, :3]), **CLOSE)
    assert np.ptp(want) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_rank_sorts_by_score_and_keeps_ids(name, folders, photos):
    reranker = load_reranker(str(folders[name][0]))
    scores = reranker.score("a cat", photos)

    ranked = reranker.rank("a cat", photos, ids=["a", "b", "c", "d"], k=3)

    assert [i for i, _ in ranked] == ["abcd"[i] for i in np.argsort(-scores, kind="stable")][:3]
    assert [s for _, s in ranked] == pytest.approx(sorted(scores.tolist(), reverse=True)[:3])


def test_scoring_leaves_the_global_generator_alone(folders, photos):
    reranker = load_reranker(str(folders["vilt"][0]))
    before = torch.random.get_rng_state()

    first, second = (reranker.score("a cat", photos) for _ in range(2))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(first, second)


def test_sides_that_do_not_pair_and_other_models_are_refused(folders, photos, texts, tmp_path):
    reranker = load_reranker(str(folders["blip"][0]))
    transformers.BertConfig().save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match="3 texts and 4 pictures"):
        reranker.score(texts, photos)
    with pytest.raises(ConfigError, match="as many ids"):
        reranker.rank("a cat", photos, ids=["a"])
    with pytest.raises(ConfigError, match="'bert'"):
        load_reranker(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no config\.json; give one of BLIP"):
        load_reranker(f"hf:{tmp_path / 'nothing'}")
    assert reranker.score([], photos).shape == (0,)


def test_a_dual_encoder_judges_pairs_by_their_cosine(photos, texts, tmp_path):
    source = f"hf:{save_network(clip, tmp_path)}"
    embedder = load_embedder(source)
    want = embedder.embed_text(texts) @ embedder.embed_image(photos).T

    judge = load_reranker(source)
    table = judge.over(texts, lambda i: photos[i], len(photos), batch_size=3)

    for text, row in zip(texts, want, strict=True):
        assert np.allclose(judge.score(text, photos), row, **CLOSE)
    for photo, column in zip(photos, want.T, strict=True):
        assert np.allclose(judge.score(texts, photo), column, **CLOSE)
    asked, found = (n.ravel() for n in np.indices(want.shape))
    assert np.allclose(table(asked, found), want.ravel(), **CLOSE)
    assert np.ptp(want) > 1e-3
    assert judge.score([], photos).shape == (0,)
    with pytest.raises(ConfigError, match="no probability"):
        judge.probabilities(texts[0], photos)


def test_scores_over_fixed_pictures_are_those_of_the_pairs(folders, photos, texts):
    judge = load_reranker(str(folders["blip"][0]))
    asked, found = np.array([0, 2, 1]), np.array([3, 0, 0])

    scores = judge.over(texts, lambda i: photos[i], len(photos))(asked, found)

    want = judge.score([texts[i] for i in asked], [photos[i] for i in found])
    assert np.allclose(scores, want, **CLOSE)


def test_an_embedder_of_pictures_alone_judges_no_words():
    only = wrap_callable(lambda pictures: np.ones((len(pictures), 4)), name="ones")

    with pytest.raises(ConfigError, match="embeds image, not text: give a dual encoder"):
        EncoderReranker(only)
