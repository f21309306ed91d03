"""ImageBind's image trunk against its formula, evaluated in float64 from the weights alone."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fourm_lite.embedders.imagebind import ImageBindConfig, ImageBindVision, read_imagebind
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, ShapeError

TINY = {
    "width": 24,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 4,
    "patch_size": 6,
    "frames": 2,
    "image_size": 30,
    "out_dim": 10,
}


def expected_shapes(width, depth, mlp_ratio, patch, frames, num_patches, out_dim):
    """Names and shapes of the published file's image branch, as docs/embedders.md lists them."""
    d, stem, trunk, head = (
        width,
        "modality_preprocessors.vision",
        "modality_trunks.vision",
        "modality_heads.vision",
    )
    shapes = {
        f"{stem}.cls_token": (1, 1, d),
        f"{stem}.rgbt_stem.proj.1.weight": (d, 3, frames, patch, patch),
        f"{stem}.pos_embedding_helper.pos_embed": (1, 1 + num_patches, d),
        f"{trunk}.pre_transformer_layer.0.weight": (d,),
        f"{trunk}.pre_transformer_layer.0.bias": (d,),
        f"{head}.0.weight": (d,),
        f"{head}.0.bias": (d,),
        f"{head}.2.weight": (out_dim, d),
    }
    for i in range(depth):
        block = f"{trunk}.blocks.{i}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * d, d),
            f"{block}.attn.in_proj_bias": (3 * d,),
            f"{block}.attn.out_proj.weight": (d, d),
            f"{block}.attn.out_proj.bias": (d,),
            f"{block}.norm_1.weight": (d,),
            f"{block}.norm_1.bias": (d,),
            f"{block}.mlp.fc1.weight": (mlp_ratio * d, d),
            f"{block}.mlp.fc1.bias": (mlp_ratio * d,),
            f"{block}.mlp.fc2.weight": (d, mlp_ratio * d),
            f"{block}.mlp.fc2.bias": (d,),
            f"{block}.norm_2.weight": (d,),
            f"{block}.norm_2.bias": (d,),
        }
    return shapes


@pytest.fixture
def weights():
    """Random float64 weights under the published names, every one of them in use."""
    generator = torch.Generator().manual_seed(3)
    shapes = expected_shapes(24, 3, 4, 6, 2, 25, 10)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3
        + (1.0 if ".norm_" in name or name.endswith(".0.weight") else 0.0)
        for name, shape in shapes.items()
    }


@pytest.fixture
def folder(weights, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    save_file({k: v.float() for k, v in weights.items()}, tmp_path / "model.safetensors")
    return tmp_path


def formula(weights, pixels):
    """Class token and tokens of the trunk and the projected vector, in NumPy and float64.

    x0 = [cls; W * (frame, frame)] + pos;  x = LN(x0);  x += Attn(LN(x));  x += MLP(LN(x)), depth
    times; out = P LN(x)[0] / |.|. Written from the published description, without the library.
    """
    w = {k: v.numpy() for k, v in weights.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(x, name, heads):
        q, k, v = np.split(
            x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"], 3, axis=-1
        )
        size = x.shape[-1] // heads
        out = np.zeros_like(x)
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, part] = (scores / scores.sum(-1, keepdims=True)) @ v[:, part]
        return out @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]

    def mlp(x, name):
        x = x @ w[f"{name}.fc1.weight"].T + w[f"{name}.fc1.bias"]
        x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return x @ w[f"{name}.fc2.weight"].T + w[f"{name}.fc2.bias"]

    stem, trunk = "modality_preprocessors.vision", "modality_trunks.vision"
    kernel = w[f"{stem}.rgbt_stem.proj.1.weight"].sum(axis=2)  # both frames are the same picture
    p = kernel.shape[-1]
    found = []
    for image in pixels.double().numpy():
        rows, columns = image.shape[1] // p, image.shape[2] // p
        patches = [
            np.einsum("dchw,chw->d", kernel, image[:, r * p : (r + 1) * p, c * p : (c + 1) * p])
            for r in range(rows)
            for c in range(columns)
        ]
        x = np.stack([w[f"{stem}.cls_token"][0, 0], *patches])
        x = norm(
            x + w[f"{stem}.pos_embedding_helper.pos_embed"][0], f"{trunk}.pre_transformer_layer.0"
        )
        for i in range(TINY["depth"]):
            block = f"{trunk}.blocks.{i}"
            x = x + attention(norm(x, f"{block}.norm_1"), f"{block}.attn", TINY["num_heads"])
            x = x + mlp(norm(x, f"{block}.norm_2"), f"{block}.mlp")
        out = w["modality_heads.vision.2.weight"] @ norm(x, "modality_heads.vision.0")[0]
        found.append((x, out / np.linalg.norm(out)))
    tokens, projected = zip(*found, strict=True)
    return np.stack(tokens), np.stack(projected)


def test_the_trunk_equals_the_published_formula_in_float64(folder, weights, photos):
    projected = load_embedder(f"imagebind:{folder}")
    class_token = load_embedder(f"imagebind:{folder}?output=class_token")
    pixels = projected.preprocess.batch(photos)["pixel_values"]
    tokens, vectors = formula({k: v.float().double() for k, v in weights.items()}, pixels)

    got = class_token.embed_image(photos, normalize=False)

    assert np.allclose(projected.embed_image(photos), vectors, atol=1e-5)
    assert np.allclose(projected.embed_image(photos, batch_size=1), vectors, atol=1e-5)
    assert np.allclose(got, tokens[:, 0], atol=1e-5 * np.abs(tokens).max())
    assert np.allclose(
        class_token.embed_patches(photos), tokens[:, 1:], atol=1e-5 * np.abs(tokens).max()
    )
    assert (projected.dim, class_token.dim) == (10, 24)
    assert projected.space.fingerprint != class_token.space.fingerprint


def test_names_and_shapes_are_those_of_the_published_file():
    with torch.device("meta"):
        model = ImageBindVision(ImageBindConfig())

    got = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    assert got == expected_shapes(1280, 32, 4, 14, 2, 256, 1024)
    assert sum(math.prod(shape) for shape in got.values()) == 632_829_440


def test_the_documents_list_every_name_and_shape():
    text = (Path(__file__).parents[2] / "docs" / "embedders.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(modality_[^`]+)` \| ([\d, ]+) \|$", text, flags=re.MULTILINE)

    listed = {
        name.replace("{i}", str(i)): tuple(map(int, shape.split(",")))
        for name, shape in rows
        for i in range(32 if "{i}" in name else 1)
    }

    assert listed == expected_shapes(1280, 32, 4, 14, 2, 256, 1024)


def test_the_image_trunk_has_no_extra_key_and_value(folder):
    names = read_imagebind(folder).state_dict()

    assert not [name for name in names if "bias_k" in name or "bias_v" in name]


def test_pictures_are_resized_and_cropped_as_imagebind_publishes(folder, photos):
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [
            transforms.Resize(30, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(30),
            transforms.ToTensor(),
            transforms.Normalize(
                mean=(0.48145466, 0.4578275, 0.40821073),
                std=(0.26862954, 0.26130258, 0.27577711),
            ),
        ]
    )

    embedder = load_embedder(f"imagebind:{folder}")

    for photo in photos:
        assert torch.allclose(embedder.preprocess(photo), theirs(photo), atol=1e-6)


def test_wrong_folders_and_pictures_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="fourm-lite convert FILE -o OUT"):
        load_embedder(f"imagebind:{tmp_path / 'empty'}")
    with pytest.raises(CheckpointError, match="nothing"):
        load_embedder(f"imagebind:{tmp_path / 'nothing'}")
    with pytest.raises(FourMError, match="cannot embed text"):
        load_embedder(f"imagebind:{folder}").embed_text("a cat")
    with pytest.raises(ShapeError, match="25 patches"):
        read_imagebind(folder)(torch.zeros(1, 3, 36, 36))
    (folder / "config.json").write_text(json.dumps({**TINY, "num_head": 4}))
    with pytest.raises(ConfigError, match="Did you mean 'num_heads'"):
        load_embedder(f"imagebind:{folder}")
    (folder / "config.json").write_text(json.dumps({**TINY, "depth": 4}))
    with pytest.raises(CheckpointError, match=r"blocks\.3"):
        load_embedder(f"imagebind:{folder}")
    with pytest.raises(ConfigError, match="multiple"):
        ImageBindConfig(width=30, num_heads=4)
