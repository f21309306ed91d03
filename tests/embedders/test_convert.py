"""Published .pth files to safetensors: nothing is executed, nothing is lost in silence."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fourm_lite.cli import main
from fourm_lite.embedders.convert import CONVERSIONS, convert_pth, timm_config, timm_names
from fourm_lite.embedders.imagebind import ImageBindConfig, ImageBindVision
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.pth import read_pth
from fourm_lite.errors import CheckpointError, ConfigError


@pytest.fixture
def imagebind():
    config = ImageBindConfig(
        width=32, depth=2, num_heads=16, patch_size=7, image_size=28, out_dim=9
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageBindVision(config).eval()


def test_imagebinds_file_becomes_a_folder_of_its_image_branch(imagebind, tmp_path, photos):
    others = {
        "modality_trunks.audio.blocks.0.attn.bias_k": torch.zeros(1, 1, 8),
        "modality_heads.text.proj.0.weight": torch.zeros(8),
        "modality_postprocessors.text.1.log_logit_scale": torch.zeros(()),
    }
    torch.save({**imagebind.state_dict(), **others}, tmp_path / "imagebind_huge.pth")

    done = convert_pth(tmp_path / "imagebind_huge.pth", tmp_path / "out")

    assert done.family == "imagebind"
    assert done.left_out == tuple(others)
    assert done.num_tensors == len(imagebind.state_dict())
    embedder = load_embedder(f"imagebind:{tmp_path / 'out'}")
    with torch.inference_mode():
        want = imagebind(embedder.preprocess.batch(photos)["pixel_values"]).numpy()
    assert embedder.preprocess.crop == (28, 28)
    assert np.allclose(embedder.embed_image(photos), want, atol=1e-6)


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2s_file_becomes_a_timm_folder(registers, tmp_path, photos):
    timm = pytest.importorskip("timm")
    from timm.models.vision_transformer import checkpoint_filter_fn

    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    model = timm.create_model(name, img_size=28, depth=1).eval()
    original = {k: torch.randn_like(v) * 0.1 for k, v in model.state_dict().items()}
    original |= {"mask_token": torch.zeros(1, 384), "pos_embed": torch.randn(1, 5, 384)}
    if registers:
        original["register_tokens"] = original.pop("reg_token")
    torch.save(original, tmp_path / "dinov2.pth")
    model.load_state_dict(checkpoint_filter_fn(dict(original), model))

    done = convert_pth(tmp_path / "dinov2.pth", tmp_path / "out")

    embedder = load_embedder(f"timm:{tmp_path / 'out'}")
    with torch.inference_mode():
        pixels = embedder.preprocess.batch(photos)["pixel_values"]
        want = model.forward_features(pixels)[:, 0].numpy()
    assert (done.family, done.left_out) == ("dinov2", ("mask_token",))
    assert np.allclose(embedder.embed_image(photos, normalize=False), want, atol=1e-5)


def test_a_plain_file_keeps_its_names_and_unties_its_tensors(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    inside = {"module.a.weight": shared, "module.b.weight": shared, "epoch": 3}
    torch.save({"state_dict": inside, "lr": 0.1}, tmp_path / "net.pth")

    done = convert_pth(tmp_path / "net.pth", tmp_path / "out")

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert done.family == "plain"
    assert sorted(stored) == ["a.weight", "b.weight"]
    assert torch.equal(stored["b.weight"], shared)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_file_with_code_is_not_opened(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "module.pth")
    options = argparse.Namespace(net=nn.Linear(2, 2))
    torch.save({"args": options, "model": {"w": torch.ones(1)}}, tmp_path / "args.pth")

    for name in ("module.pth", "args.pth"):
        with pytest.raises(CheckpointError, match=f"{name}.*more than tensors"):
            convert_pth(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_files_and_families_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")

    with pytest.raises(CheckpointError, match="no dictionary of tensors"):
        read_pth(tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_pth(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        read_pth(tmp_path / "text.pth")
    with pytest.raises(ConfigError, match="Did you mean 'imagebind'"):
        convert_pth(tmp_path / "net.pth", tmp_path / "out", family="image_bind")
    with pytest.raises(ConfigError, match="no checkpoint of 'imagebind'"):
        convert_pth(tmp_path / "net.pth", tmp_path / "out", family="imagebind")
    assert json.dumps(sorted(CONVERSIONS)) == (
        '["dinov2", "efficientnet_lite", "imagebind", "plain"]'
    )


def test_a_training_checkpoint_is_converted_on_the_command_line(capsys, tmp_path):
    weights = {"module.a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2).half()}
    options = argparse.Namespace(lr=0.1, name="run", nested=argparse.Namespace(x=[1, None]))
    torch.save({"model": weights, "epoch": 3, "args": options}, tmp_path / "run.pth")

    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / "run.pth"), "-o", str(tmp_path / "out"), "--json"])

    shown = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 0
    assert shown == {
        "folder": str(tmp_path / "out"), "family": "plain", "tensors": 2, "left_out": [],
        "notes": ["'module.' was taken off the names"],
    }  # fmt: skip
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["a"], weights["module.a"])
    assert stored["b"].dtype == torch.float16
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_averaged_weights_come_first(tmp_path):
    both = {"model": {"w": torch.zeros(1)}, "model_ema": {"w": torch.ones(1)}}
    torch.save(both, tmp_path / "run.pth")

    assert torch.equal(read_pth(tmp_path / "run.pth").weights["w"], torch.ones(1))


def test_a_file_with_code_is_refused_on_the_command_line(capsys, tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "module.pth")

    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / "module.pth"), "-o", str(tmp_path / "out")])

    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "more than tensors" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_the_backbone_of_a_dinov2_training_is_taken_from_among_its_heads(tmp_path):
    block = {f"blocks.0.{name}": torch.ones(384) for name in ("ls1.gamma", "ls2.gamma")}
    own = {
        "cls_token": torch.zeros(1, 1, 384), "mask_token": torch.zeros(1, 384), **block,
        "pos_embed": torch.zeros(1, 5, 384), "patch_embed.proj.weight": torch.ones(384, 3, 14, 14),
    }  # fmt: skip
    teacher = {f"backbone.{key}": value for key, value in own.items()}
    teacher["dino_head.mlp.0.weight"] = torch.ones(2, 2)
    torch.save({"teacher": teacher}, tmp_path / "run.pth")

    done = convert_pth(tmp_path / "run.pth", tmp_path / "out")

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert done.family == "dinov2"
    assert sorted(stored) == sorted(set(own) - {"mask_token"})
    assert done.left_out == ("mask_token", "dino_head.mlp.0.weight")
    assert "'backbone.' was taken off the names" in done.notes


def test_a_family_that_lacks_tensors_is_told(tmp_path, imagebind):
    state = imagebind.state_dict()
    state.pop("modality_heads.vision.2.weight")
    torch.save(state, tmp_path / "x.pth")

    with pytest.raises(CheckpointError, match=r"lacks tensors.*modality_heads\.vision\.2\.weight"):
        convert_pth(tmp_path / "x.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def lukemelas_name(key, stage_of):
    """timm's name of a tensor of EfficientNet-Lite, as efficientnet_lite_pytorch has it."""
    separable = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv",
                 "bn2": "_bn2"}  # fmt: skip
    expanded = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv",
                "bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}  # fmt: skip
    around = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1",
              "classifier": "_fc"}  # fmt: skip
    parts = key.split(".")
    if parts[0] != "blocks":
        return ".".join([around[parts[0]], *parts[1:]])
    table = separable if parts[1] == "0" else expanded
    number = stage_of.index((int(parts[1]), int(parts[2])))
    return ".".join([f"_blocks.{number}", table[parts[3]], *parts[4:]])


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_efficientnet_lite_becomes_a_timm_folder(number, tmp_path):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model(f"tf_efficientnet_lite{number}")
    blocks = [(s, b) for s, stage in enumerate(network.blocks) for b in range(len(stage))]
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    held = {  # empty tensors of the right shapes: one number each, its place among all
        lukemelas_name(key, blocks): torch.full((), i % 100, dtype=torch.float16).expand(shape)
        for i, (key, shape) in enumerate(shapes.items())
    }

    named = timm_names(held)
    config = timm_config(named)

    assert {key: value.shape for key, value in named.items()} == shapes
    assert [float(v.flatten()[0]) for v in named.values()] == [i % 100 for i in range(len(shapes))]
    assert config["architecture"] == f"tf_efficientnet_lite{number}"


def test_a_file_like_efficientnet_lite_is_converted_and_opens(tmp_path, photos):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("tf_efficientnet_lite0").eval()
    blocks = [(s, b) for s, stage in enumerate(network.blocks) for b in range(len(stage))]
    state = {lukemelas_name(k, blocks): v for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "lite0.pth")

    done = convert_pth(tmp_path / "lite0.pth", tmp_path / "out")

    embedder = load_embedder(f"timm:{tmp_path / 'out'}")
    assert (done.family, done.left_out) == ("efficientnet_lite", ())
    assert embedder.embed_image(photos[:1], normalize=False).shape == (1, 1280)
    torch.save({**state, "_blocks.1._se.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="no tensor of EfficientNet-Lite"):
        convert_pth(tmp_path / "other.pth", tmp_path / "other")


def test_floats_are_halved_where_that_is_asked_for(tmp_path):
    weights = {"a.weight": torch.linspace(-2, 2, 12).reshape(3, 4), "a.count": torch.arange(3)}
    torch.save(weights, tmp_path / "net.pth")

    convert_pth(tmp_path / "net.pth", tmp_path / "out", half=True)

    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["a.weight"].dtype == torch.float16
    assert torch.allclose(found["a.weight"].float(), weights["a.weight"], atol=1e-3)
    assert torch.equal(found["a.count"], weights["a.count"])
