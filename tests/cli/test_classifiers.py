"""The verbs finetune, classify and evaluate knn, probe, fewshot, from photos to files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny import tiny_model
from tiny_photos import write_classes, write_list
from verbs import run

from fourm_lite.backbone import export
from fourm_lite.backbone.vit import FMViT


@pytest.fixture
def model(tmp_path):
    return tiny_model(scale=2.0).save(tmp_path / "model")


@pytest.fixture
def photos(tmp_path):
    return write_list(tmp_path / "photos")


@pytest.mark.parametrize("mode", ["probe", "lora", "full"])
def test_finetune_then_classify(capsys, model, photos, tmp_path, mode):
    out = tmp_path / "out"
    broken = photos / "images" / "red" / "0.png"
    broken.write_bytes(b"?")
    words = ["--model", model, "--mode", mode, "--out", out, "--epochs", 1, "--batch-size", 8]

    code, shown, err = run(capsys, "finetune", photos, *words)

    assert code == 0, err
    assert "red/0" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"] > 0.9
    assert report["protocol"]["measured_on"] == "test"
    assert json.loads((out / "skipped.json").read_text())[0]["id"] == "red/0"
    names = {"confusion.png", "per_class.csv"} | (set() if mode == "probe" else {"curves.png"})
    assert names <= {path.name for path in out.iterdir()}

    paths = [photos / "images" / name / "12.png" for name in ("red", "green")]
    code, shown, err = run(capsys, "classify", *paths, broken, "--model", out, "--json")
    results = json.loads(shown)
    assert code == 0, err
    assert [r.get("label") for r in results] == ["red", "green", None]
    assert "red/0.png" in results[2]["photo"]
    assert sum(c["probability"] for c in results[0]["top"]) == pytest.approx(1, abs=1e-5)


def test_a_probe_says_which_options_it_does_not_read(capsys, model, photos, tmp_path):
    words = ["--model", model, "--out", tmp_path / "out", "--epochs", 3, "--patience", 5]

    code, _, err = run(capsys, "finetune", photos, *words)

    assert code == 0, err
    note = "a linear probe is solved from features and does not read --epochs"
    assert note in err.splitlines()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert note in report["protocol"]["notes"]


@pytest.mark.parametrize("protocol", ["knn", "probe", "fewshot"])
def test_evaluate_writes_the_report(capsys, model, photos, tmp_path, protocol):
    path = tmp_path / "out.json"
    words = ["--model", model, "--data", photos, "--test-data", photos, "--json", path]

    code, _, err = run(capsys, "evaluate", protocol, *words)

    assert code == 0, err
    report = json.loads(path.read_text())
    assert report["accuracy"] > 0.8
    assert set(report["per_class"]) == {"red", "green", "blue"}
    assert report["interval"][0] <= report["accuracy"] <= report["interval"][1]
    facts = report["protocol"]
    assert (facts["train_photos"], facts["val_photos"], facts["test_photos"]) == (24, 9, 12)
    if protocol == "fewshot":
        assert set(report["by_shots"]) == {"5", "20"}


def test_neighbours_are_asked_by_the_embedding_that_a_model_generates(capsys, photos, tmp_path):
    path = tmp_path / "out.json"
    words = ["--model", "mini", "--features", "embedding", "--data", photos, "--json", path]

    code, _, err = run(capsys, "evaluate", "knn", *words)

    assert code == 0, err
    report = json.loads(path.read_text())
    assert report["protocol"]["features"] == "the expected global embedding, from pixels"
    assert report["accuracy"] > 0.5


def test_folders_of_classes_are_asked_whole(capsys, model, tmp_path):
    train, test = write_classes(tmp_path / "a", 5), write_classes(tmp_path / "b", 3)
    words = ["--model", model, "--data", train, "--test-data", test]

    code, shown, err = run(capsys, "evaluate", "probe", *words)

    assert code == 0, err
    assert "15 to learn from, 9 asked" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "knn", "--data", "{classes}"], "names no test photos"),
        (["evaluate", "fewshot", "--data", "{photos}", "--shots", "0"], "--shots"),
        (["evaluate", "knn", "--data", "nowhere"], "found none at nowhere"),
        (["evaluate", "knn", "--data", "{photos}", "--features", "odd"], "encoder or embedding"),
        (["finetune", "nowhere", "--out", "{out}"], "found none at nowhere"),
        (["finetune", "{photos}", "--out", "{out}", "--head", "odd"], "--head is one of"),
        (["classify", "x.png"], "there is no photo at x.png"),
        (["classify", "{photos}/images/red/12.png"], "has no trained classifier"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, model, photos, tmp_path, words, message):
    places = {"classes": write_classes(tmp_path / "c"), "photos": photos, "out": tmp_path / "out"}
    words = [word.format(**places) for word in words]

    code, _, err = run(capsys, *words, "--model", model)

    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_photos_of_which_none_can_be_read_are_an_error(capsys, model, photos, tmp_path):
    out = tmp_path / "out"
    run(capsys, "finetune", photos, "--model", model, "--out", out)

    code, _, err = run(capsys, "classify", tmp_path / "none.png", "--model", out)

    assert code == 2
    assert "none.png" in err


def test_export_shows_how_each_form_agrees(capsys, model, photos, tmp_path):
    words = ["--out", tmp_path / "e", "--forms", "export,bf16", "--photos", photos, "--json"]

    code, shown, err = run(capsys, "export", model, *words)

    assert code == 0, err
    lines = {line["form"]: line for line in json.loads(shown)}
    assert set(lines) == {"float32", "export", "bf16"}
    assert lines["export"]["max_difference"] < 1e-5
    assert (tmp_path / "e" / "model.pt2").is_file()


def test_export_of_a_model_without_a_classifier_gives_features(capsys, model, tmp_path):
    words = ["--out", tmp_path / "e", "--forms", "export", "--images", 4]

    code, shown, err = run(capsys, "export", model, *words)

    assert code == 0, err
    assert "has no trained classifier: its features are exported" in err
    assert "same largest feature" in shown
    pixels = torch.zeros(2, 3, 16, 16)
    made = torch.export.load(tmp_path / "e" / "model.pt2").module()(pixels)
    backbone = FMViT.from_pretrained(model, num_classes=0)
    torch.testing.assert_close(made, backbone(pixels))
    assert export.output_name(backbone) == "features"


def test_export_compares_on_photos_without_labels(capsys, model, photos, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    found = [p for p in sorted(photos.rglob("*")) if p.suffix in (".jpg", ".png")][:3]
    for number, path in enumerate(found):
        shutil.copy(path, plain / f"{number}{path.suffix}")
    words = ["--out", tmp_path / "e", "--forms", "bf16", "--photos", plain, "--json"]

    code, shown, err = run(capsys, "export", model, *words)

    assert code == 0, err
    assert [line["form"] for line in json.loads(shown)] == ["float32", "bf16"]


def test_export_leaves_out_what_lacks_a_package_unless_it_is_named(
    capsys, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    monkeypatch.setattr("fourm_lite.backbone.export.FORMS", ("export", "onnx"))

    code, shown, err = run(capsys, "export", model, "--out", tmp_path / "all", "--json")

    assert code == 0, err
    assert [line["form"] for line in json.loads(shown)] == ["float32", "export"]
    assert "left out: onnx needs onnx and onnxscript and onnxruntime; pip install" in err

    words = ["--out", tmp_path / "one", "--forms", "onnx"]
    code, _, err = run(capsys, "export", model, *words)

    assert code != 0
    assert "the form onnx needs onnx" in err
    assert not (tmp_path / "one").exists()
