"""Convolutions beside an encoder: in a model, a ViT, a file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import GLOBAL
from tiny_convolutions import BESIDE, PIXELS, given, made

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import ConfigError
from fourm_lite.model.load import load_model


@pytest.fixture
def pixels(generator):
    return torch.randn(2, 3, 64, 64, generator=generator)


@torch.no_grad()
def test_convolutions_whose_map_is_zero_change_nothing(pixels):
    model, plain = made(), made(convolutions=False)
    torch.nn.init.zeros_(model.encoder_embeddings["rgb@64"].conv_map.weight)
    torch.nn.init.zeros_(model.encoder_embeddings["rgb@64"].conv_map.bias)
    own = {n: v for n, v in model.state_dict().items() if not n.startswith(BESIDE)}
    plain.load_state_dict(own)

    batch = given(pixels)

    assert torch.equal(model.encode(batch).output, plain.encode(batch).output)


@torch.no_grad()
def test_pixels_of_patches_that_are_not_given_change_nothing(pixels):
    model = made()
    inputs = torch.ones(2, 16, dtype=torch.bool)
    inputs[:, 5] = False  # rows 16 to 32, columns 16 to 32
    other = pixels.clone()
    other[:, :, 16:32, 16:32] += 3.0

    first, second = (model.encode(given(x, inputs)).output for x in (pixels, other))

    assert torch.equal(first, second)
    assert not torch.allclose(model.encode(given(other)).output, model.encode(given(pixels)).output)


@torch.no_grad()
def test_what_lies_around_a_patch_is_seen(pixels):
    model = made()
    other = pixels.clone()
    other[:, :, 16:32, 16:32] += 3.0
    embedding = model.encoder_embeddings["rgb@64"]

    first, second = (
        embedding.beside(given(x)["rgb@64"]).view(2, 4, 4, -1) for x in (pixels, other)
    )

    assert not torch.allclose(first[:, 0, 1], second[:, 0, 1])


@torch.no_grad()
def test_a_file_holds_them_and_gives_the_same_numbers(tmp_path, pixels):
    model = made()

    again = load_model(model.save(tmp_path / "model"))

    assert again.modality("rgb@64").convolutions
    assert torch.equal(again.encode(given(pixels)).output, model.encode(given(pixels)).output)
    path = tmp_path / "model" / "model.safetensors"
    assert f"{BESIDE}olutions.first.weight" in load_file(path)


def test_they_are_for_patches_of_sixteen_pixels_alone():
    with pytest.raises(ConfigError, match=r"convolutions.*patch_size of 16.*patch_size 8"):
        replace(PIXELS, patch_size=8, grid=(8, 8), max_tokens=64)
    with pytest.raises(ConfigError, match="convolutions"):
        replace(GLOBAL, convolutions=True)


@torch.no_grad()
def test_a_vit_has_them_for_images_of_any_size(tmp_path, pixels):
    model = made()
    vit = FMViT.from_pretrained(model.save(tmp_path / "model"))

    torch.testing.assert_close(vit.forward_features(pixels), model.encode(given(pixels)).output)
    assert vit.forward_features(torch.zeros(1, 3, 32, 96)).shape == (1, 12, 16)


@torch.no_grad()
def test_timm_takes_over_those_that_a_file_shows(tmp_path):
    timm = pytest.importorskip("timm")
    import fourm_lite.backbone.timm_models  # noqa: F401

    name = "fm_vit_tiny_patch16_224"
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    entry = replace(plain.config.pixels, convolutions=True)
    config = replace(plain.config, inputs=(entry,))
    ours = FMViT(config).init_weights().eval()
    path = ours.save(tmp_path / "vit") / "model.safetensors"
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    got = timm.create_model(name, checkpoint_path=path).eval()

    torch.testing.assert_close(got.forward_features(x), ours.forward_features(x))
    assert got.config.pixels.convolutions
    got.load_state_dict(plain.state_dict())
    assert not got.config.pixels.convolutions
