"""What a folder's own configuration can make a library do: shape a network, nothing else."""

from __future__ import annotations

import json

import pytest
from tiny_networks import save_timm

from fourm_lite.embedders.folder_configs import check_config, timm_arguments
from fourm_lite.embedders.hf import load_tokenizer
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError

timm = pytest.importorskip("timm")

SHAPE = {"embed_dim": 24, "depth": 1, "num_heads": 3, "img_size": 32}


@pytest.fixture
def folder(tmp_path):
    model = timm.create_model("vit_small_patch16_224", num_classes=0, **SHAPE)
    save_timm(model, "vit_small_patch16_224", SHAPE, 32, tmp_path / "net")
    return tmp_path / "net"


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    "argument",
    [
        {"pretrained": True},
        {"checkpoint_path": "/tmp/other.pth"},
        {"cache_dir": "written_here"},
        {"pretrained_cfg": {"url": "https://example.org/x"}},
        {"pretrained_cfg_overlay": {"file": "/tmp/x"}},
        {"pruned": True},
        {"features_only": True},
        {"scriptable": True},
        {"global_pool": "/etc/passwd"},
        {"depth": 10**6},
        {"depth": 900},
        {"embed_dim": 10**9},
        {"img_size": [[32] * 100]},
        ["depth"],
        "depth=3",
    ],
)
def test_a_timm_folder_shapes_its_network_and_nothing_else(folder, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = {**SHAPE, **argument} if isinstance(argument, dict) else argument
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(CheckpointError):
        load_embedder(f"timm:{change(folder, model_args=stored)}")

    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["hf-hub:timm/x", "local-dir:/tmp/x", "no_such_model", "../x", 3])
def test_the_architecture_of_a_timm_folder_is_one_that_timm_has(folder, name):
    with pytest.raises(CheckpointError, match="architecture"):
        load_embedder(f"timm:{change(folder, architecture=name)}")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": "7"}, {"num_classes": -3}, {"num_classes": 10**12}, {"pretrained_cfg": 3},
        {"pretrained_cfg": {"input_size": "large"}}, {"pretrained_cfg": {"mean": ["a"]}},
        {"model_args": {"embed_dim": -24}}, {"model_args": {"num_heads": 0}},
        {"model_args": {"img_size": "big"}}, {"model_args": {"patch_size": 0}},
    ],
)  # fmt: skip
def test_a_damaged_timm_folder_ends_in_our_error(folder, changes):
    with pytest.raises(CheckpointError):
        load_embedder(f"timm:{change(folder, **changes)}").embed_image([])


def test_every_argument_of_a_sound_timm_folder_is_taken(folder):
    assert load_embedder(f"timm:{folder}").dim == 24


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "x", "trust_remote_code": True},
        {"backbone_config": {"use_pretrained_backbone": True}},
        {"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "x.pth"}},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/x"},
        {"model_cfg": {"vision_cfg": {"timm_model_pretrained": True}}},
        {"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}},
        {"layers": [{"cache_dir": "/tmp/x"}]},
    ],
)
def test_a_configuration_that_sends_its_library_elsewhere_is_refused(config, tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        check_config(config, tmp_path / "config.json")


def test_arguments_of_real_folders_pass(tmp_path):
    published = {
        "img_size": 256, "embed_dims": [8, 16], "act_layer": "gelu", "reg_tokens": 4,
        "dynamic_img_size": True, "init_values": 1e-5, "global_pool": "", "norm_layer": None,
    }  # fmt: skip

    assert timm_arguments(published, tmp_path, 100) == published


MARKER = "import pathlib\npathlib.Path({!r}).write_text('ran')\nclass Net: pass\n"


def test_code_in_a_folder_is_never_run_and_never_asked_about(tmp_path, monkeypatch):
    folder, mark = tmp_path / "net", tmp_path / "ran"
    folder.mkdir()
    (folder / "net.py").write_text(MARKER.format(str(mark)))
    auto = {"AutoConfig": "net.Net", "AutoModel": "net.Net", "AutoTokenizer": ["net.Net", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard", "auto_map": auto}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    (folder / "vocab.txt").write_text("[UNK]\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked on the terminal"))

    with pytest.raises(CheckpointError, match="never run"):
        load_embedder(f"hf:{folder}")
    with pytest.raises(CheckpointError):
        load_tokenizer(str(folder))

    assert not mark.exists()
