"""open_clip models from saved folders against the library's own calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import OPEN_CLIP, OPEN_CLIP_TEXT, save_open_clip

from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, ConfigError

from .conftest import unit

open_clip = pytest.importorskip("open_clip", reason="the extra [open_clip] is not installed")
pytest.importorskip("torchvision")

CLOSE = {"atol": 1e-5, "rtol": 0}
CONFIGS = {
    "clip": OPEN_CLIP,
    "mobileclip": {
        "embed_dim": 12,
        "vision_cfg": {
            "timm_model_name": "fastvit_mci0",
            "timm_pool": "avg",
            "timm_proj": None,
            "image_size": 64,
        },
        "text_cfg": {**OPEN_CLIP_TEXT, "no_causal_mask": True},
        "custom_text": True,
    },
}
PREPROCESS = {
    "clip": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "interpolation": "bicubic"},
    "mobileclip": {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in CONFIGS}
    for name, folder in made.items():
        save_open_clip(CONFIGS[name], PREPROCESS[name], folder)
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_vectors_equal_the_librarys_single_and_batched(name, folders, photos, texts):
    local = f"local-dir:{folders[name]}"
    model, _, transform = open_clip.create_model_and_transforms(local)
    tokenizer = open_clip.get_tokenizer(local)
    with torch.inference_mode():
        images = unit(model.eval().encode_image(torch.stack([transform(p) for p in photos])))
        words = unit(model.encode_text(tokenizer(texts)))

    embedder = load_embedder(f"open_clip:{folders[name]}")

    assert np.allclose(embedder.embed_image(photos), images, **CLOSE)
    assert np.allclose(embedder.embed_image(photos, batch_size=1), images, **CLOSE)
    assert np.allclose(embedder.embed_text(texts), words, **CLOSE)
    assert np.allclose(embedder.embed_text(texts, batch_size=1), words, **CLOSE)
    assert embedder.logit_scale.scale == pytest.approx(float(model.logit_scale.detach().exp()))


def test_names_without_weights_and_folders_without_safetensors_are_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")

    with pytest.raises(ConfigError, match="laion2b_s34b_b79k"):
        load_embedder("open_clip:ViT-B-32")
    with pytest.raises(ConfigError, match="Did you mean 'ViT-B-32'"):
        load_embedder("open_clip:ViT-B-3/openai")
    with pytest.raises(CheckpointError, match="fourm-lite convert FILE -o OUT"):
        load_embedder(f"open_clip:{tmp_path}")
