"""Vectors of timm models, from saved folders, against the library's own calls."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import save_timm

from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.timm_networks import _output
from fourm_lite.errors import CheckpointError, ConfigError, FourMError

from .conftest import unit

timm = pytest.importorskip("timm")
timm_data = pytest.importorskip("timm.data")

CLOSE = {"atol": 1e-5, "rtol": 0}
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3}
CLASSIFIER_SIZE = {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "center"}

# name -> architecture, its arguments, its classes, its input edge
MODELS = {
    "dinov2": ("vit_small_patch14_dinov2", {**TINY, "img_size": 42}, 0, 42),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", {**TINY, "img_size": 42}, 0, 42),
    "dinov3": ("vit_small_patch16_dinov3", {**TINY, "img_size": 32}, 0, 32),
    "classifier": ("resnet10t", {}, 7, 32),
    "mobileclip": (
        "fastvit_mci0",
        {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)},
        20,
        64,
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each family once: the folder, the model in evaluation mode and timm's own transform."""
    made = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, (architecture, arguments, classes, edge) in MODELS.items():
            model = timm.create_model(architecture, num_classes=classes, **arguments).eval()
            folder = tmp_path_factory.mktemp("timm") / "model"
            save_timm(model, architecture, arguments, edge, folder)
            config = {**model.pretrained_cfg, "input_size": (3, edge, edge)}
            resolved = timm_data.resolve_data_config({}, pretrained_cfg=config)
            made[name] = folder, model, timm_data.create_transform(**resolved, is_training=False)
    return made


def pixels(transform, photos):
    return torch.stack([transform(photo) for photo in photos])


@pytest.mark.parametrize("name", ["dinov2", "dinov2 registers", "dinov3"])
def test_dino_gives_its_class_token_and_its_patch_map(name, folders, photos):
    pytest.importorskip("torchvision")
    folder, model, transform = folders[name]
    with torch.inference_mode():
        states = model.forward_features(pixels(transform, photos)).numpy()

    embedder = load_embedder(f"timm:{folder}")
    single = np.concatenate([embedder.embed_image(p, normalize=False) for p in photos])

    assert np.allclose(embedder.embed_image(photos, normalize=False), states[:, 0], **CLOSE)
    assert np.allclose(single, states[:, 0], **CLOSE)
    patches = states[:, model.num_prefix_tokens :]
    assert np.allclose(embedder.embed_patches(photos), patches, **CLOSE)
    assert patches.shape[1] == 9 if name.startswith("dinov2") else 4


def test_a_mobileclip_tower_keeps_its_projection(folders, photos):
    pytest.importorskip("torchvision")
    folder, model, transform = folders["mobileclip"]
    with torch.inference_mode():
        want = unit(model(pixels(transform, photos)))

    embedder = load_embedder(f"timm:{folder}")

    assert embedder.dim == 20
    assert np.allclose(embedder.embed_image(photos), want, **CLOSE)
    assert np.allclose(embedder.embed_image(photos, batch_size=1), want, **CLOSE)
    with pytest.raises(FourMError, match="cannot embed text"):
        embedder.embed_text("a cat")


# What image towers of text and image project to; no classifier of timm has as many classes
PROJECTIONS = {384, 512, 640, 768, 1024, 1152, 1280}


def test_every_projection_in_timms_zoo_is_kept_and_every_classifier_loses_its_head():
    zoo = timm.list_pretrained()
    towers = 0

    for name in zoo:
        config = timm.get_pretrained_cfg(name).to_dict()
        classes = config["num_classes"]
        architecture, _, tag = name.partition(".")
        stored = {**config, "architecture": architecture, "tag": tag}

        output = _output(SimpleNamespace(num_classes=classes), stored)

        assert (output == "projected") == (classes in PROJECTIONS), name
        towers += classes in PROJECTIONS
    assert towers > 90


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_base_mci_224.apple_mclip", {"depth": 1}),
        ("convnext_base.clip_laion2b", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
        ("vit_pe_core_tiny_patch16_384.fb", {"depth": 1}),
        ("eva02_base_patch16_clip_224.merged2b", {"depth": 1}),
    ],
)
def test_towers_of_text_and_image_give_their_projection(name, arguments, photos, tmp_path):
    architecture, _, tag = name.partition(".")
    config = {**timm.get_pretrained_cfg(name).to_dict(), "architecture": architecture, "tag": tag}
    edge = config["input_size"][1]
    model = timm.create_model(
        architecture, pretrained_cfg=config, num_classes=config["num_classes"], **arguments
    ).eval()
    save_timm(model, architecture, arguments, edge, tmp_path / "model")
    resolved = timm_data.resolve_data_config({}, pretrained_cfg=config)
    with torch.inference_mode():
        want = unit(model(pixels(timm_data.create_transform(**resolved), photos[:2])))

    got = load_embedder(f"timm:{tmp_path / 'model'}").embed_image(photos[:2])

    assert np.allclose(got, want, **CLOSE)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_truncated_file_is_told_in_our_words(file, folders, tmp_path):
    for path in folders["classifier"][0].iterdir():
        whole = path.read_bytes()
        (tmp_path / path.name).write_bytes(whole[: len(whole) // 2] if path.name == file else whole)

    with pytest.raises(FourMError, match=file):
        load_embedder(f"timm:{tmp_path}")


def test_a_classifier_loses_its_head_and_gives_its_pooled_features(folders, photos):
    pytest.importorskip("torchvision")
    folder, model, transform = folders["classifier"]
    with torch.inference_mode():
        states = model.forward_features(pixels(transform, photos))
        want = model.forward_head(states, pre_logits=True).numpy()

    embedder = load_embedder(f"timm:{folder}")
    single = np.concatenate([embedder.embed_image(p, normalize=False) for p in photos])

    assert np.allclose(embedder.embed_image(photos, normalize=False), want, **CLOSE)
    assert np.allclose(single, want, **CLOSE)
    maps = states.flatten(2).transpose(1, 2).numpy()
    assert np.allclose(embedder.embed_patches(photos), maps, **CLOSE)
    with pytest.raises(ConfigError, match="no class token"):
        load_embedder(f"timm:{folder}?output=class_token").embed_image(photos)


def test_another_image_size_resamples_the_positions(folders, photos):
    folder, model, _ = folders["dinov2"]

    larger = load_embedder(f"timm:{folder}?image_size=56")
    same = load_embedder(f"timm:{folder}?image_size=42")

    assert larger.embed_patches(photos).shape == (4, 16, 24)
    assert same.preprocess == load_embedder(f"timm:{folder}").preprocess
    assert larger.space.fingerprint != same.space.fingerprint
    with torch.inference_mode():
        model.set_input_size((56, 56))
        want = model(larger.preprocess.batch(photos)["pixel_values"]).numpy()
        model.set_input_size((42, 42))
    assert np.allclose(larger.embed_image(photos, normalize=False), want, **CLOSE)


def test_wrong_names_folders_and_weights_are_refused(folders, tmp_path):
    folder = folders["classifier"][0]
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text((folder / "config.json").read_text())
    save_file({"wrong": torch.zeros(1)}, tmp_path / "other" / "model.safetensors")

    with pytest.raises(ConfigError, match="Did you mean 'vit_small_patch14_dinov2'"):
        load_embedder("timm:vit_smal_patch14_dinov2")
    with pytest.raises(CheckpointError, match="save_for_hf"):  # no network here
        load_embedder("timm:vit_small_patch14_dinov2")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin.*fourm-lite convert FILE -o OUT"):
        load_embedder(f"timm:{tmp_path / 'half'}")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_embedder(f"timm:{tmp_path / 'other'}")
    with pytest.raises(ConfigError, match="output is"):
        load_embedder(f"timm:{folder}?output=cls")
