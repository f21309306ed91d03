"""`fourm-lite embed` and `index --engine`, as people call them."""

import json

import numpy as np
import pytest
from tiny_pipeline import photo, save_pipeline
from verbs import run

from fourm_lite import FourMPipeline


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


def test_a_file_holds_the_vectors_of_the_pipeline(capsys, tmp_path, model):
    photo(0).save(tmp_path / "a.png")
    items = [{"rgb": str(tmp_path / "a.png")}]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))

    code, _, err = run(capsys, "embed", tmp_path / "i.jsonl", "-o", tmp_path / "v.npy", "-m", model)

    assert code == 0, err
    expected = FourMPipeline.from_pretrained(model).embed(items)
    assert np.allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


def test_what_is_wrong_is_said_before_a_model_is_loaded(capsys, tmp_path):
    (tmp_path / "t.txt").write_text("a dog")

    code, _, err = run(capsys, "embed", tmp_path / "t.txt", "-o", "v.csv", "-m", "absent")

    assert code != 0
    assert "v.csv" in err
