import numpy as np
import pytest
from tiny_pipeline import photo

from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.evaluate.pair_scores import Direction, PairScores
from fourm_lite.model.packing import packed
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.likelihood_scores import Likelihood, LikelihoodReranker
from fourm_lite.search.rerank import rerank
from fourm_lite.search.rerank_weights import (
    USUAL_TOKENS,
    careful,
    fit_weights,
    log_likelihood,
    words_share,
)
from fourm_lite.search.spaces import open_space

from .conftest import network

TARGET = "tok_vector_global"


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(0).integers(0, 24, (7, 4))


def test_codes_are_scored_as_the_pipeline_scores_them(pipe, space, codes):
    reranker = LikelihoodReranker(Likelihood.of(space))
    query = {"caption": "a red circle", "rgb": photo(3)}

    parts = reranker.parts(query, hits_of(codes))

    assert np.allclose(parts["codes"], pipe.score({TARGET: list(codes)}, query)[0], atol=1e-5)


def test_words_are_scored_from_each_candidate_as_the_pipeline_scores_them(pipe, space, codes):
    parts = LikelihoodReranker(Likelihood.of(space)).parts(
        {"caption": "two green dogs"}, hits_of(codes)
    )

    alone = pipe.score({"caption": "two green dogs"}, [{TARGET: row} for row in codes])
    text = Likelihood.of(space).texts(pipe.read([{"caption": "two green dogs"}]))
    assert np.allclose(parts["caption"], words_share(text)[0] * alone[:, 0], atol=1e-5)


def test_the_fewer_words_a_query_has_the_less_their_likelihood_counts():
    shares = words_share([range(2 + n) for n in range(2 * USUAL_TOKENS)])

    assert np.all(np.diff(shares) >= 0)
    assert shares[0] == 0
    assert np.allclose(shares[USUAL_TOKENS:], 1)


def test_texts_of_unlike_length_do_not_change_each_other(space, codes):
    likelihood = Likelihood.of(space)
    batch = space.pipe.read([{"caption": t} for t in ("a", "a red circle on the left", "dogs a")])
    texts = likelihood.texts(batch)
    ready = likelihood.candidates(codes)
    pairs = np.array([[t, c] for t in range(3) for c in (0, 4)])

    together = likelihood.text_scores(texts, ready, pairs)

    for pair, score in zip(pairs, together, strict=True):
        assert np.isclose(score, likelihood.text_scores(texts, ready, pair[None])[0], atol=1e-5)


def hits_of(codes):
    scores = np.linspace(0.9, 0.3, len(codes)).astype(np.float32)
    return Hits([f"r{i}" for i in range(len(codes))], scores, {"codes": list(codes)})


def test_reranking_puts_the_weighted_sum_in_order(space, codes):
    weights = {"cosine": 3.0, "codes": 1.0, "caption": 0.5}
    reranker = LikelihoodReranker(Likelihood.of(space), weights)
    query, hits = {"caption": "a blue square"}, hits_of(codes)

    found = rerank(query, hits, reranker, depth=5)

    parts = reranker.parts(query, hits_of(codes).take(range(5)))
    total = 3 * hits.scores[:5] + parts["codes"] + 0.5 * parts["caption"]
    assert found.ids == [f"r{i}" for i in np.argsort(-total, kind="stable")] + ["r5", "r6"]
    assert np.allclose(found.scores[:5], np.sort(total)[::-1], atol=1e-5)


def test_a_query_without_words_is_reranked_by_codes(space, codes):
    reranker = LikelihoodReranker(Likelihood.of(space), {"codes": 1.0, "caption": 5.0})

    scores = reranker({"rgb": photo(0)}, hits_of(codes))

    assert np.allclose(scores, reranker.parts({"rgb": photo(0)}, hits_of(codes))["codes"])


def test_what_cannot_be_reranked_says_why(space, codes):
    reranker = LikelihoodReranker(Likelihood.of(space), {"caption": 1.0})
    with pytest.raises(ConfigError, match="one of them a weight"):
        reranker({"rgb": photo(0)}, hits_of(codes))
    with pytest.raises(ConfigError, match="have none"):
        reranker({"caption": "a"}, Hits(["a"], np.ones(1, np.float32)))
    with pytest.raises(ShapeError, match="another target"):
        reranker({"caption": "a"}, hits_of(codes[:, :3]))
    with pytest.raises(ConfigError, match="Did you mean 'codes'"):
        LikelihoodReranker(Likelihood.of(space), {"code": 1.0})
    with pytest.raises(ConfigError, match="dual encoder"):
        Likelihood.of(open_space(load_embedder(network)))


def test_fitted_weights_are_those_that_drew_the_answers():
    rng = np.random.default_rng(0)
    parts = {"cosine": rng.normal(0, 0.1, (4000, 12)), "codes": rng.normal(3, 2.0, (4000, 12))}
    z = 8 * parts["cosine"] + 0.7 * parts["codes"]
    right = np.zeros(z.shape, bool)
    right[np.arange(len(z)), np.argmax(z + rng.gumbel(size=z.shape), axis=1)] = True

    weights = fit_weights(parts, right)

    assert weights["cosine"] == pytest.approx(8, rel=0.12)
    assert weights["codes"] == pytest.approx(0.7, rel=0.12)


def test_a_useless_part_gets_hardly_any_weight_and_no_right_answer_is_refused():
    rng = np.random.default_rng(1)
    right = np.eye(10, dtype=bool)
    parts = {"cosine": right * 1.0 + rng.normal(0, 0.3, (10, 10)), "codes": np.ones((10, 10))}

    weights = fit_weights(parts, right)

    assert weights["cosine"] > 1
    assert abs(weights["codes"]) < 1e-6
    with pytest.raises(ConfigError, match="no query has a right candidate"):
        fit_weights(parts, np.zeros((10, 10), bool))


def test_pairs_of_an_evaluation_are_those_of_single_queries(space, codes):
    items = [{"caption": t} for t in ("a red circle", "two dogs", "a")]
    texts, images = space.encode_query(items), space.decode_codes(codes)
    pairs = PairScores.of(space, items, codes, texts, images, batch_size=2)
    weights = {"cosine": 2.0, "codes": 1.0, "caption": 1.0}

    owner = np.array([0, 1, 2])
    by_text, by_photo = Direction(owner, True), Direction(owner, False)
    forward, back = (pairs.rescore(weights, d, 7) for d in (by_text, by_photo))

    reranker = LikelihoodReranker(Likelihood.of(space), weights)
    for i, item in enumerate(items):
        hits = Hits(list(range(7)), (texts[i] @ images.T), {"codes": list(codes)})
        alone = reranker(item, hits)
        assert np.allclose(forward(i, np.arange(7)), alone, atol=1e-4)
        # captions of one photo compete by their means, however long they are
        said, share = reranker.said(item, hits), words_share([pairs.texts[i]])[0]
        whole = alone + (1 - share) * said
        assert np.allclose([back(g, np.array([i]))[0] for g in range(7)], whole, atol=1e-4)
    fits = [pairs.fit(direction, 7).weights for direction in (by_text, by_photo)]
    assert set(fits[0]) == set(fits[1]) == {*weights, "prior"}


def test_only_the_first_by_the_cheap_parts_are_scored_by_words(space, codes):
    likelihood, weights = Likelihood.of(space), {"codes": 1.0, "caption": 3.0}
    query, hits = {"caption": "two green dogs"}, hits_of(codes)

    scores = LikelihoodReranker(likelihood, weights, caption_depth=3)(query, hits)

    parts = LikelihoodReranker(likelihood).parts(query, hits)
    order = np.argsort(-parts["codes"], kind="stable")
    full = parts["codes"] + 3 * parts["caption"]
    assert np.allclose(scores[order[:3]], full[order[:3]], atol=1e-5)
    assert np.argsort(-scores, kind="stable")[3:].tolist() == order[3:].tolist()


def test_a_part_that_speaks_against_the_right_ones_is_left_out():
    rng = np.random.default_rng(2)
    right = np.eye(20, dtype=bool)
    noise = rng.normal(0, 0.5, (2, 20, 20))
    parts = {"cosine": right + noise[0], "caption": noise[1] - right}

    weights = fit_weights(parts, right)

    assert weights["caption"] == 0
    assert weights["cosine"] == pytest.approx(
        fit_weights({"cosine": parts["cosine"]}, right)["cosine"]
    )
    better = log_likelihood({"cosine": parts["cosine"]}, right, weights)
    assert better > log_likelihood({"cosine": parts["cosine"]}, right, {"cosine": 0.0})


@pytest.mark.parametrize("worth", [0.0, 0.3, 1.0, 3.0])
def test_a_costly_part_gets_no_more_weight_than_is_sure_and_never_harms_in_the_mean(worth):
    rng = np.random.default_rng(3)
    right = np.tile(np.arange(20) == 0, (1500, 1))
    shown = right + rng.normal(0, 0.6, right.shape)
    parts = {"cosine": shown, "caption": worth * right + rng.normal(0, 1.0, right.shape)}
    seen, fresh = slice(0, 500), slice(500, None)
    some = {name: part[seen] for name, part in parts.items()}

    full = fit_weights(some, right[seen])
    weights = careful(some, right[seen], full, ["caption"])

    assert 0 <= weights["caption"] <= full["caption"]
    assert weights["cosine"] == full["cosine"]
    rest = {name: part[fresh] for name, part in parts.items()}
    total = sum(weights[name] * part for name, part in rest.items())
    ranks = [1 + (z > z[:, :1]).sum(axis=1) for z in (rest["cosine"], total)]
    plain, again = (np.mean(1 / rank) for rank in ranks)
    assert again >= plain - 1e-9 if worth else again == pytest.approx(plain)
    assert worth < 1 or again > plain + 0.02


def test_texts_share_rows_by_candidate_and_rows_are_full():
    pairs = np.array([[t, c] for c in range(3) for t in range(4)])

    rows = packed([3, 5, 9, 2], pairs, most=10)

    assert sorted(np.concatenate(rows).tolist()) == list(range(12))
    assert all(len({int(pairs[p, 1]) for p in row}) == 1 for row in rows)
    sizes = [sum([3, 5, 9, 2][pairs[p, 0]] for p in row) for row in rows]
    assert max(sizes) <= 10
    assert sizes == sorted(sizes)
    assert len(rows) == 6
    assert [len(row) for row in packed([30], np.zeros((2, 2), int), most=10)] == [1, 1]
