import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.metrics.ranking import (
    caption_retrieval,
    curve,
    measure,
    same_class_retrieval,
)
from fourm_lite.unit import unit


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def angle(*degrees):
    at = np.deg2rad(degrees)
    return np.stack([np.cos(at), np.sin(at)], 1)


def pairs(rng, photos=40, each=5, noise=1.0, width=16):
    images = rng.standard_normal((photos, width))
    owner = np.repeat(np.arange(photos), each)
    return images[owner] + noise * rng.standard_normal((len(owner), width)), images, owner


def test_both_directions_worked_out_by_hand():
    # Photos at 0, 90 and 180 degrees. Captions of photo 0 at 10 and 100, of 1 at 80, of 2 at 120.
    texts, images, owner = angle(10, 100, 80, 120), angle(0, 90, 180), np.array([0, 0, 1, 2])

    told = caption_retrieval(texts, images, owner)

    # Text ranks: 10 -> photo 0 first. 100 -> photos 1, 2, 0. 80 -> photo 1 first. 120 -> 1, then 2.
    assert told["text_to_image"]["R@1"] == 2 / 4
    assert told["text_to_image"]["median_rank"] == 1.5
    assert told["text_to_image"]["MRR"] == pytest.approx((1 + 1 / 3 + 1 + 1 / 2) / 4)
    # Photo 0 finds 10. Photo 1 finds 80 and 100 at equal angles: the wrong 100 goes first.
    # Photo 2 finds 120.
    image = told["image_to_text"]
    assert image["R@1"] in (2 / 3, 1.0)  # float32 cosines of 80 and 100 may differ in the last bit
    assert image["R@5"] == 1
    assert told["protocol"]["queries_text"] == 4
    assert told["protocol"]["captions_per_image"] == pytest.approx(4 / 3, abs=1e-4)


def test_exact_ties_count_against_us():
    vectors = np.eye(4)[[0, 0, 1, 2]]

    told = caption_retrieval(vectors, vectors, np.arange(4), draws=10)

    assert told["text_to_image"]["R@1"] == 2 / 4
    assert told["text_to_image"]["R@5"] == 1
    assert told["text_to_image"]["median_rank"] == 1.5


def test_any_of_five_captions_counts_for_a_photo(rng):
    texts, images, owner = pairs(rng)
    far = texts.copy()
    far[np.arange(len(owner)) % 5 != 2] = rng.standard_normal(texts.shape[1])
    far[2::5] = images

    told = caption_retrieval(far, images, owner, draws=10)

    assert told["image_to_text"]["R@1"] == 1
    assert told["image_to_text"]["mAP"] < 0.9


def test_a_report_is_json_with_intervals_around_its_values(rng):
    texts, images, owner = pairs(rng, noise=2.0)

    told = caption_retrieval(texts, images, owner, protocol={"split": "test", "model": "m"})

    again = json.loads(json.dumps(told))
    assert again["protocol"]["split"] == "test"
    for way in ("text_to_image", "image_to_text"):
        for name, (low, high) in again[way]["interval"].items():
            assert low <= again[way][name] <= high
        assert 0 < again[way]["R@1"] < again[way]["R@10"] <= 1


def test_a_permutation_of_captions_or_photos_changes_nothing(rng):
    texts, images, owner = pairs(rng, noise=2.0)
    t, p = rng.permutation(len(texts)), rng.permutation(len(images))
    place = np.argsort(p)

    told = caption_retrieval(texts, images, owner, draws=10)
    other = caption_retrieval(texts[t], images[p], place[owner[t]], draws=10)

    for way in ("text_to_image", "image_to_text"):
        for name in ("R@1", "R@10", "median_rank", "mAP", "nDCG@10"):
            assert told[way][name] == pytest.approx(other[way][name], abs=1e-9)


def test_an_oracle_reranker_lifts_what_lies_within_its_depth_and_no_more(rng):
    texts, images, owner = pairs(rng, photos=60, noise=3.0)
    plain = caption_retrieval(texts, images, owner, draws=10)
    ranks = measure(unit(texts), unit(images), lambda r: owner[r][:, None] == np.arange(60))["rank"]

    def oracle_text(row, candidates):
        return (candidates == owner[row]).astype(float)

    def oracle_image(row, candidates):
        return (owner[candidates] == row).astype(float)

    told = caption_retrieval(texts, images, owner, rerank=(10, oracle_text, oracle_image), draws=10)

    assert told["text_to_image"]["R@1"] == pytest.approx((ranks <= 10).mean())
    assert told["text_to_image"]["R@1"] == pytest.approx(plain["text_to_image"]["R@10"])
    assert told["protocol"]["rerank_depth"] == 10


def test_a_reranker_that_repeats_the_cosine_changes_nothing(rng):
    texts, images, owner = pairs(rng, noise=2.0)
    scores = unit(texts) @ unit(images).T

    told = caption_retrieval(
        texts,
        images,
        owner,
        rerank=(7, lambda r, c: scores[r, c], lambda r, c: scores[c, r]),
        draws=10,
    )

    plain = caption_retrieval(texts, images, owner, draws=10)
    assert told["text_to_image"]["R@5"] == plain["text_to_image"]["R@5"]
    assert told["text_to_image"]["mAP"] == pytest.approx(plain["text_to_image"]["mAP"])


def test_same_class_retrieval_leaves_the_query_out(rng):
    labels = np.repeat(["a", "b", "c"], 4)
    vectors = rng.standard_normal((12, 8))
    units = unit(vectors)

    told = same_class_retrieval(vectors, labels, draws=10)

    each = []
    for row in range(12):
        others = np.arange(12) != row
        scores = (units @ units[row])[others]
        each.append(average_precision_score(labels[others] == labels[row], scores))
    assert told["mAP"] == pytest.approx(np.mean(each))
    assert told["protocol"]["classes"] == 3


def test_same_class_retrieval_worked_out_by_hand():
    # At 0, 10 and 40, 55 degrees, labels a b a b: 0 sees 10b 40a 55b; 10 sees 0a 40a 55b;
    # 40 sees 55b 10b 0a; 55 sees 40a 10b 0a.
    told = same_class_retrieval(angle(0, 10, 40, 55), list("abab"), draws=10)

    assert told["mAP"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    assert told["R@1"] == 0


def test_what_cannot_be_evaluated_is_refused(rng):
    texts, images, owner = pairs(rng, photos=3)
    with pytest.raises(ConfigError, match="1 photos without"):
        caption_retrieval(texts[:10], images, owner[:10])
    with pytest.raises(ShapeError, match="one photo number a caption"):
        caption_retrieval(texts, images, owner[:3])
    with pytest.raises(ConfigError, match="one image only, such as"):
        same_class_retrieval(images, ["a", "a", "b"])
    with pytest.raises(ConfigError, match="vector 1 is zero"):
        same_class_retrieval(np.eye(3)[[0, 0, 1]] * [[1], [0], [1]], [0, 0, 0])


def test_reports_by_setting_become_lines():
    lines = curve({1: {"R@1": 0.2}, 4: {"R@1": 0.3}}, ["R@1"])

    assert lines == {"R@1": [(1.0, 0.2), (4.0, 0.3)]}
