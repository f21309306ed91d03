import numpy as np
import pytest
from tiny_photos import write_list

from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.retrieval import evaluate_same_class
from fourm_lite.metrics.ranking import same_class_retrieval
from fourm_lite.search.spaces import open_space

from .conftest import network


def test_photos_of_one_class_are_asked_for_by_each_of_them(tmp_path, pipe, space):
    folder = write_list(tmp_path)

    report = evaluate_same_class(space, folder, "test", batch_size=5, draws=20)

    photos = [
        folder / f"images/{c}/{i}.png" for c in ("red", "green", "blue") for i in range(11, 15)
    ]
    vectors = pipe.embed([{"rgb": path} for path in photos])
    alone = same_class_retrieval(vectors, np.repeat([0, 1, 2], 4), draws=20)
    assert report["mAP"] == pytest.approx(alone["mAP"])
    assert report["interval"]["mAP"] == alone["interval"]["mAP"]
    protocol = report["protocol"]
    assert (protocol["images"], protocol["classes"], protocol["split"]) == (12, 3, "test")
    assert "GPR1200" in protocol["protocol"]
    assert protocol["gallery"] == "model"


def test_what_cannot_be_read_or_stands_alone_is_left_out_and_said(tmp_path, pipe):
    folder = write_list(tmp_path, train=0, val=0, test=2)
    (folder / "images/red/0.png").write_bytes(b"no picture")
    by_colour = open_space(pipe, gallery=load_embedder(network))

    report = evaluate_same_class(by_colour, folder, "all", draws=5)

    assert report["mAP"] > 0.7  # colours tell these classes apart
    assert report["protocol"]["skipped"][0]["id"] == "red/0"
    assert report["protocol"]["left_out_alone_in_class"] == ["red/1"]
    assert report["protocol"]["images"] == 4


def test_classes_of_one_photo_are_refused(tmp_path, space):
    with pytest.raises(ConfigError, match="no class has two"):
        evaluate_same_class(space, write_list(tmp_path, train=0, val=0, test=1), "test")
