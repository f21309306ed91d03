"""A hub cache with published models and all their tokenizers, tiny and random.

The folders are those of huggingface_hub: `models--OWNER--NAME/refs/main` names a snapshot, whose
files are links to blobs. Configs have the original's keys; only widths and depths are smaller.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.load import build_empty
from fourm_lite.nn.device import without_storage
from fourm_lite.tokenization.vq.config import parse_config
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

FOURM_7 = (
    "rgb@224", "caption", "det", "tok_rgb@224", "tok_depth@224", "tok_normal@224",
    "tok_semseg@224", "tok_clip@224",
)  # fmt: skip
FOURM_21 = (
    "caption", "t5_caption", "det", "metadata", "human_poses", "color_palette", "sam_instance",
    "rgb@224", "tok_rgb@224", "tok_normal@224", "tok_depth@224", "tok_semseg@224", "tok_clip@224",
    "tok_dinov2@224", "tok_dinov2_global", "tok_imagebind@224", "tok_imagebind_global",
    "tok_sam_edge@224", "tok_canny_edge@224",
)  # fmt: skip
LARGE = ("tok_rgb@448", "tok_depth@448", "tok_normal@448", "tok_semseg@448", "tok_clip@448")
FOURM_SR = (*FOURM_7, "rgb@448", *LARGE)

SIZE: dict[str, Any] = {
    "act_layer": "SiLU", "dim": 16, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1,
    "mlp_ratio": 4, "gated_mlp": True, "image_size": 224, "patch_size": 16, "norm_bias": False,
    "qkv_bias": False, "proj_bias": False, "mlp_bias": False,
}  # fmt: skip
UNSHARED = {"share_modality_embeddings": False}
MODELS: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, bool]]] = {
    "4M-21_B": (FOURM_21, tuple(n for n in FOURM_21 if n != "rgb@224"), UNSHARED),
    "4M-7-T2I_B_CC12M": (FOURM_7, FOURM_7[1:], {}),
    "4M-7-SR_L_CC12M": (FOURM_SR, LARGE, {}),
}

VIT = {"enc_type": "vit_16x1x1_enc", "patch_proj": True, "patch_size": 16}
QUANTIZER = {"quant_type": "lucid", "latent_dim": 8, "norm_codes": True, "norm_latents": False}
DIRECT = {**VIT, **QUANTIZER, "dec_type": "vit_16x1x1_dec", "image_size": 224, "post_mlp": True}
DIFFUSION = {
    **VIT, **QUANTIZER, "dec_type": "unet_patched_32", "image_size": 224, "post_mlp": True,
    "codebook_size": 8192, "beta_schedule": "linear", "clip_sample": True, "thresholding": True,
    "num_train_timesteps": 1000, "prediction_type": "sample", "zero_terminal_snr": True,
}  # fmt: skip
FEATURES = {**DIRECT, "patch_proj": False, "codebook_size": 8192}
MLP = "BottleneckMLP/B_1-Wi_32"
VECTOR = {
    "enc_type": MLP, "dec_type": MLP, "patch_proj": False, "quant_type": "memcodes",
    "codebook_size": 8192, "num_codebooks": 16, "latent_dim": 32, "image_size": 224,
    "sync_codebook": False,
}  # fmt: skip
TOKENIZERS: dict[str, dict[str, Any]] = {
    "rgb_16k_224-448": {**DIFFUSION, "n_channels": 3, "codebook_size": 16384},
    "depth_8k_224-448": {**DIFFUSION, "n_channels": 1},
    "normal_8k_224-448": {**DIFFUSION, "n_channels": 3},
    "edge_8k_224-512": {**DIFFUSION, "n_channels": 1},
    "semseg_4k_224-448": {**DIRECT, "n_channels": 8, "n_labels": 134, "codebook_size": 4096},
    "CLIP-B16_8k_224-448": {**FEATURES, "n_channels": 512},
    "DINOv2-B14_8k_224-448": {**FEATURES, "n_channels": 768, "patch_size": 14},
    "ImageBind-H14_8k_224-448": {**FEATURES, "n_channels": 1280, "patch_size": 14},
    "DINOv2-B14-global_8k_16_224": {**VECTOR, "n_channels": 768},
    "ImageBind-H14-global_8k_16_224": {**VECTOR, "n_channels": 1280},
    "sam-instance_1k_64": {
        **DIRECT, "n_channels": 1, "codebook_size": 1024, "image_size": 64, "post_mlp": False,
        "out_conv": True,
    },
    "human-poses_1k_8": {**VECTOR, "n_channels": 207, "codebook_size": 1024, "num_codebooks": 8},
}  # fmt: skip


def build_cache(cache: Path) -> Path:
    """Every model and tokenizer of the tables above, as the hub's own client would keep them."""
    for number, name in enumerate(MODELS):
        config, weights = model_files(name, seed=number)
        add_repository(cache, f"EPFL-VILAB/{name}", config, weights)
    for number, (name, config) in enumerate(TOKENIZERS.items()):
        weights = tokenizer_weights(config, seed=number)
        add_repository(cache, f"EPFL-VILAB/4M_tokenizers_{name}", config, weights)
    return cache


def model_files(name: str, seed: int = 0) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of a published model in the original's words, and random weights for it."""
    inputs, outputs, more = MODELS[name]
    shape = {**SIZE, **more}
    own = FourMConfig(
        inputs=tuple(MODALITIES[n] for n in inputs),
        outputs=tuple(MODALITIES[n] for n in outputs if MODALITIES[n].is_target),
        **{**shape, "mlp_ratio": float(shape["mlp_ratio"])},
    )
    config = {**shape, "domains_in": list(inputs), "domains_out": list(outputs)}
    return config, random_weights(build_empty(own), seed)


def tokenizer_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    with without_storage():
        empty = VQTokenizer(parse_config(config))
    return random_weights(empty, seed)


def random_weights(module: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Small random numbers for every tensor that a file holds; norms stay near one."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, value in module.state_dict().items():
        if name.startswith("encoder_embeddings.") and name.endswith("mod_emb"):
            twin = name.replace("encoder_", "decoder_", 1)
            if twin in out:
                out[name] = out[twin].clone()
                continue
        is_scale = value.ndim == 1 and name.endswith("weight")
        drawn = torch.randn(value.shape, generator=generator)
        out[name] = 1 + 0.1 * drawn if is_scale else 0.2 * drawn
    return out


def add_repository(
    cache: Path, hub_id: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """One repository in the hub's layout."""
    place = cache / f"models--{hub_id.replace('/', '--')}"
    blobs = place / "blobs"
    blobs.mkdir(parents=True)
    save_file(dict(weights), blobs / "new", metadata={"format": "pt"})
    readme = "---\nlicense: other\nlicense_name: sample-code-license\n---\n"
    texts = {"config.json": json.dumps(config, indent=2, sort_keys=True), "README.md": readme}
    commit = hashlib.sha1(hub_id.encode()).hexdigest()
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    digest = hashlib.sha256(hub_id.encode()).hexdigest()
    (blobs / "new").rename(blobs / digest)
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / digest)
    for name, text in texts.items():
        blob = blobs / hashlib.sha1(text.encode()).hexdigest()
        blob.write_text(text)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)


def without(cache: Path, hub_id: str, into: Path) -> Path:
    """A cache like another one that lacks a repository; what it has is linked."""
    into.mkdir()
    for place in cache.iterdir():
        if place.name != f"models--{hub_id.replace('/', '--')}":
            (into / place.name).symlink_to(place)
    return into


def remove(cache: Path, hub_id: str) -> None:
    shutil.rmtree(cache / f"models--{hub_id.replace('/', '--')}")
