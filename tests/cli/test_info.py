from __future__ import annotations

import json

import pytest
from verbs import run

from fourm_lite.io.checkpoint import read
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM


@pytest.fixture
def model_folder(tmp_path):
    config = FourMConfig(
        inputs=(MODALITIES["rgb@224"], MODALITIES["metadata"]),
        outputs=(MODALITIES["tok_dinov2_global"], MODALITIES["metadata"]),
        dim=8,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=2,
    )
    folder = tmp_path / "model"
    FourM(config).init_weights().save(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    return folder


def test_the_json_of_a_model_names_its_modalities_licence_and_config(capsys, model_folder):
    code, out, _ = run(capsys, "info", model_folder, "--json")

    facts = json.loads(out)
    assert code == 0
    assert facts["kind"] == "fourm"
    assert facts["format"] == "fourm_lite 1"
    assert facts["licence"] == "apache-2.0"
    assert facts["inputs"] == ["rgb@224", "metadata"]
    assert facts["outputs"] == ["tok_dinov2_global", "metadata"]
    assert FourMConfig.from_dict(facts["config"]).dim == 8
    assert facts["tensors"] == len(read(model_folder).tensors)


def test_what_people_see_says_what_goes_in_and_out(capsys, model_folder):
    _, out, _ = run(capsys, "info", model_folder)

    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert rows["rgb@224"] == ["rgb@224", "pixels", "yes", "196"]
    assert rows["metadata"] == ["metadata", "sequence", "yes", "yes", "40", "30000"]
    assert rows["tok_dinov2_global"][1:] == ["grid", "yes", "16", "8192"]
    assert rows["licence"] == ["licence", "apache-2.0"]


def test_stored_checkpoints_of_the_original_are_told_apart(capsys, golden):
    manifest = json.loads((golden / "manifest.json").read_text(encoding="utf-8"))
    stored = [m for m in manifest["models"].values() if "checkpoint_dir" in m]
    if not stored:
        pytest.skip("no stored checkpoint in this folder")
    for entry in stored:
        for file in ("", "single.safetensors"):
            source = golden / entry["checkpoint_dir"] / file

            code, out, err = run(capsys, "info", source, "--json")

            assert code == 0, err
            facts = json.loads(out)
            assert facts["format"] == "ml-4m"
            kinds = {"FM": "fourm", "FMViT": "fmvit"}
            assert facts["kind"] == kinds.get(entry["class"], entry["class"])


def test_what_belongs_to_a_published_model_is_told_with_licences(capsys, published, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    _, shown, _ = run(capsys, "info", "EPFL-VILAB/4M-21_B")
    _, out, _ = run(capsys, "info", "EPFL-VILAB/4M-21_B", "--json")

    parts = json.loads(out)["belongings"]
    assert [sum(p["kind"] == k for p in parts) for k in ("tokenizer", "text", "network")] == [
        12,
        1,
        3,
    ]
    edge = next(p for p in parts if p["name"] == "edge")
    assert set(edge["modalities"]) == {"tok_sam_edge@224", "tok_canny_edge@224"}
    assert all(p["licence"] for p in parts)
    for part in parts:
        assert (part["source"] or part["name"]) in shown
        assert part["licence"] in shown


def test_tokenizers_beside_a_model_belong_to_it(capsys, model_folder):
    place = model_folder / "tokenizers" / "dinov2_global"
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}", encoding="utf-8")

    _, out, _ = run(capsys, "info", model_folder, "--json")

    (part,) = json.loads(out)["belongings"]
    assert part["source"] == str(place)
    assert part["licence"] is None
    assert part["modalities"] == ["tok_dinov2_global"]


def test_a_missing_checkpoint_is_one_message(capsys, tmp_path):
    code, out, err = run(capsys, "info", tmp_path / "nothing")

    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
