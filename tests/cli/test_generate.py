"""`generate`: when it works again, and what it refuses before any work."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from tiny_pipeline import photo, save_pipeline
from verbs import run

from fourm_lite import FourMPipeline

PLAN = 'targets = [{{ modality = "tok_semseg@32", scheme = "maskgit", steps = {} }}]\n'


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def calls(monkeypatch):
    """What the model was asked for; it answers all the same."""
    real, asked = FourMPipeline.generate, []

    def counted(self, inputs, *args, **kwargs):
        asked.append(inputs)
        return real(self, inputs, *args, **kwargs)

    monkeypatch.setattr(FourMPipeline, "generate", counted)
    return asked


def test_one_input_is_always_answered_anew(capsys, saved, calls, tmp_path):
    words = ("generate", "-m", saved, "-i", f"rgb={tmp_path / 'a.png'}", "-t", "semseg", "-o")

    for number in range(2):
        photo(number).save(tmp_path / "a.png")
        assert run(capsys, *words, tmp_path / "out")[0] == 0

    assert len(calls) == 2


def test_items_are_made_again_when_what_they_depend_on_has_changed(capsys, saved, calls, tmp_path):
    model, plan = tmp_path / "model", tmp_path / "plan.toml"
    shutil.copytree(saved, model)
    photo(0).save(tmp_path / "a.png")
    plan.write_text(PLAN.format(1))
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"id": "a", "rgb": str(tmp_path / "a.png")}))
    words = ["generate", "-m", model, "--items", items, "-p", plan, "-o", tmp_path / "out"]
    changes = [
        lambda: photo(1).save(tmp_path / "a.png"),
        lambda: plan.write_text(PLAN.format(2)),
        lambda: os.utime(model / "model.safetensors", ns=(1, 1)),
        lambda: os.utime(next((model / "tokenizers").rglob("*.safetensors")), ns=(1, 1)),
    ]

    counts = []
    for change in (lambda: None, *changes):
        change()
        for _ in range(2):
            code, _, err = run(capsys, *words)
            assert code == 0, err
        counts.append(len(calls))

    assert counts == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("ids", [("cats/1.jpg", "cats_1.jpg"), ("a", "a"), ("000001", None)])
def test_two_items_with_one_folder_are_refused_before_any_work(capsys, saved, tmp_path, ids):
    rows = [{"id": name, "caption": "a"} if name else {"caption": "a"} for name in ids]
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(map(json.dumps, rows)))

    code, _, err = run(
        capsys, "generate", "-m", saved, "--items", items, "-t", "semseg", "-o", tmp_path / "out"
    )

    assert code == 2
    assert "lines 1 and 2" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_place_of_the_folder_is_refused_before_the_model_is_opened(
    capsys, tmp_path, below
):
    (tmp_path / "file").write_text("mine")

    code, _, err = run(
        capsys, "generate", "-m", "nowhere", "-i", "caption=a", "-o", tmp_path / "file" / below
    )

    assert code == 2
    assert "is no folder" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_words_that_begin_with_a_tilde_are_words(capsys, saved, tmp_path):
    code, _, err = run(
        capsys, "generate", "-m", saved, "-i", "caption=~5 people on a beach", "-t", "semseg",
        "-o", tmp_path / "out",
    )  # fmt: skip

    assert code == 0, err
