"""`fourm-lite embed` and `index --engine`, as people call them."""

import json

import numpy as np
import pytest
from tiny_pipeline import photo, save_pipeline

from fourm_lite.cli import main


def run(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("model") / "tiny")


def test_photos_become_vectors_with_ids_and_what_is_left_out_is_told(capsys, tmp_path, model):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        photo(i).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "x.jpg").write_bytes(b"no picture")
    out = tmp_path / "v.npy"

    code, told, err = run(capsys, "embed", tmp_path / "photos", "-o", out, "-m", model, "--json")

    assert code == 0, err
    facts = json.loads(told)
    assert (facts["rows"], len(facts["left_out"])) == (3, 1)
    assert np.load(out).shape == (3, facts["width"])


def test_what_is_wrong_is_said_before_a_model_is_loaded(capsys, tmp_path):
    (tmp_path / "t.txt").write_text("a dog")

    code, _, err = run(capsys, "embed", tmp_path / "t.txt", "-o", "v.csv", "-m", "absent")

    assert code != 0
    assert "v.csv" in err
