from __future__ import annotations

import numpy as np
import pytest

from fourm_lite.errors import ShapeError
from fourm_lite.metrics.classification import classification_report, draw_confusion, table_csv

NAMES = ("cat", "dog, small", "bird")


def test_the_report_counts_by_hand():
    truth, answers = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0]

    report = classification_report(answers, truth, NAMES)

    assert report["accuracy"] == pytest.approx(4 / 6)
    assert report["per_class"] == {"cat": 2 / 3, "dog, small": 2 / 3, "bird": None}
    assert report["table"]["cat"]["precision"] == pytest.approx(2 / 3)
    assert report["confusion"] == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert report["interval"][0] <= report["accuracy"] <= report["interval"][1]


def test_figures_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(0, 3, 200), rng.integers(0, 3, 200)

    table = classification_report(answers, truth, NAMES)["table"]

    want = sklearn.precision_recall_fscore_support(truth, answers)
    for key, values in zip(("precision", "recall", "f1"), want, strict=False):
        np.testing.assert_allclose([table[name][key] for name in NAMES], values)


def test_repetitions_are_averaged_over_the_same_photos():
    report = classification_report([[0, 1], [1, 1]], [0, 1], NAMES)

    assert report["accuracy"] == 0.75
    assert report["confusion"][0][:2] == [0.5, 0.5]
    assert report["protocol"]["repetitions"] == 2


def test_answers_and_labels_of_other_lengths_are_refused():
    with pytest.raises(ShapeError):
        classification_report([0, 1], [0], NAMES)


def test_the_table_and_the_picture_can_be_opened(tmp_path):
    from PIL import Image

    report = classification_report([0, 1, 2], [0, 1, 1], NAMES)

    path = draw_confusion(report["confusion"], NAMES, tmp_path / "c.png")

    with Image.open(path) as picture:
        assert picture.size[0] > 100
    assert '"dog, small",2,' in table_csv(report["table"])
