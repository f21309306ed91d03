"""ImageBind's image trunk: a pre-norm ViT over pictures doubled to two frames.

Parameter names are those of the published checkpoint (`modality_*.vision.*`), so a converted file
loads strictly. The image trunk has a LayerNorm before its blocks and, unlike the audio, depth,
thermal and IMU trunks, no extra key and value (`bias_k`, `bias_v`). Every LayerNorm has eps 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from fourm_lite.embedders.base import NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.embedders.image_configs import Preprocess, pixels_of, preset
from fourm_lite.errors import CheckpointError, ConfigError, ShapeError, check_most, suggest
from fourm_lite.io.hub import resolve
from fourm_lite.io.recipe import from_dict
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.nn.device import without_storage

if TYPE_CHECKING:
    from PIL.Image import Image

Output = Literal["projected", "class_token"]
NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ImageBindConfig:
    """Numbers of the image trunk; the defaults are ImageBind-H."""

    width: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: int = 4
    patch_size: int = 14
    frames: int = 2
    image_size: int = 224
    out_dim: int = 1024

    def __post_init__(self) -> None:
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        check_most(1 << 14, **numbers)
        if min(numbers.values()) < 1:
            raise ConfigError(f"each number of an ImageBind network is at least 1, got {numbers}")
        if self.width % self.num_heads or self.image_size % self.patch_size:
            raise ConfigError(
                f"width {self.width} must be a multiple of num_heads {self.num_heads}, and "
                f"image_size {self.image_size} of patch_size {self.patch_size}"
            )

    @classmethod
    def read(cls, path: Path) -> ImageBindConfig:
        """The configuration of a folder; unknown keys are refused."""
        values = read_json_object(path)
        known = [field.name for field in fields(cls)]
        for key in set(values) - {*known, "format", "family"}:
            raise ConfigError(f"'{path}' has the unknown key '{key}'.{suggest(key, known)}")
        return from_dict(cls, {key: values[key] for key in known if key in values})


class ImageBindVision(nn.Module):
    """The image branch: stem, trunk and head.

    Shapes:
        pixels float32[B, 3, H, W] -> tokens [B, 1 + Hq*Wq, D], class token first
    """

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        blocks = [Block(d, config.num_heads, config.mlp_ratio) for _ in range(config.depth)]
        norm, post = _norm(d), nn.Linear(d, config.out_dim, bias=False)
        # checkpoint keys: the numbers count layers without weights too (repeat, select)
        self.modality_preprocessors = nn.ModuleDict({"vision": Stem(config)})
        self.modality_trunks = nn.ModuleDict({"vision": Trunk(_norm(d), blocks)})
        self.modality_heads = nn.ModuleDict({"vision": nn.ModuleDict({"0": norm, "2": post})})

    def tokens(self, pixels: Tensor) -> Tensor:
        """The trunk's output, before the head: class token, then patches."""
        return self.modality_trunks["vision"](self.modality_preprocessors["vision"](pixels))

    def project(self, tokens: Tensor) -> Tensor:
        """The embedding of ImageBind's common space, unit length, [B, out_dim]."""
        head = self.modality_heads["vision"]
        assert isinstance(head, nn.ModuleDict)
        return F.normalize(head["2"](head["0"](tokens)[:, 0]), dim=-1)

    def forward(self, pixels: Tensor) -> Tensor:
        """As `project`, from pixels."""
        return self.project(self.tokens(pixels))


class Stem(nn.Module):
    """Patches of 2 frames, a class token and learned positions."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        kernel = (config.frames, config.patch_size, config.patch_size)
        conv = nn.Conv3d(3, config.width, kernel, stride=kernel, bias=False)
        num_patches = (config.image_size // config.patch_size) ** 2
        self.frames = config.frames
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.rgbt_stem = nn.ModuleDict({"proj": nn.ModuleDict({"1": conv})})
        self.pos_embedding_helper = nn.ParameterDict(
            {"pos_embed": nn.Parameter(torch.zeros(1, 1 + num_patches, config.width))}
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + Hq*Wq, D]."""
        proj = self.rgbt_stem["proj"]
        assert isinstance(proj, nn.ModuleDict)
        video = repeat(pixels, "b c h w -> b c t h w", t=self.frames)
        patches = rearrange(proj["1"](video), "b d 1 h w -> b (h w) d")
        cls = repeat(self.cls_token, "1 1 d -> b 1 d", b=len(pixels))
        positions = self.pos_embedding_helper["pos_embed"]
        if patches.shape[1] + 1 != positions.shape[1]:
            raise ShapeError(
                f"ImageBind expects {positions.shape[1] - 1} patches, a picture of "
                f"{tuple(pixels.shape[2:])} gives {patches.shape[1]}; resize it first"
            )
        return torch.cat([cls, patches], dim=1) + positions


class Trunk(nn.Module):
    """LayerNorm, then pre-norm blocks; no norm at the end (the head has it)."""

    def __init__(self, norm: nn.LayerNorm, blocks: list[Block]) -> None:
        super().__init__()
        self.pre_transformer_layer = nn.ModuleList([norm])  # checkpoint key
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = self.pre_transformer_layer[0](x)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attn = SelfAttention(dim, num_heads)
        self.norm_1 = _norm(dim)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(dim, mlp_ratio * dim), "fc2": nn.Linear(mlp_ratio * dim, dim)}
        )
        self.norm_2 = _norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


class SelfAttention(nn.Module):
    """Multi-head attention under torch's parameter names (one matrix for q, k and v)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(rearrange(out, "b h n d -> b n (h d)"))


def load_imagebind(
    source: str,
    *,
    device: str = "cpu",
    output: Output = "projected",
    preprocess: Preprocess | str = "imagebind",
) -> NetworkEmbedder:
    """An embedder from a folder or Hub id with config.json and model.safetensors.

    `output`: "projected" is ImageBind's common space (1024), "class_token" the trunk's class token
    before the head (1280), which 4M's tok_imagebind_global holds. `embed_patches` gives the trunk's
    patch tokens. 4M fed it ImageNet-normalised pictures: preprocess="imagenet".

    Raises:
        CheckpointError: files are missing, or a name or shape does not fit
        ConfigError: an unknown key or output
    """
    if output not in ("projected", "class_token"):
        raise ConfigError(f"output is projected or class_token, got '{output}'")
    model = read_imagebind(resolve(source)).to(device).eval()
    prepare = (
        preset(preprocess, size=model.config.image_size)
        if isinstance(preprocess, str)
        else preprocess
    )
    image = _tower(prepare, device, lambda p: _vector(model, p, output))
    patches = _tower(prepare, device, lambda p: model.tokens(p)[:, 1:])
    return NetworkEmbedder(
        f"imagebind:{source}",
        Towers(image=image, patches=patches),
        identity=lambda: fingerprint_module(model),
        preprocess=prepare,
        facts={"output": output},
        label=f"imagebind:{output}",
    )


def read_imagebind(folder: Path) -> ImageBindVision:
    """The image branch from a folder, loaded strictly."""
    paths = folder / "config.json", folder / "model.safetensors"
    if not all(path.is_file() for path in paths):
        raise CheckpointError(
            f"'{folder}' must hold config.json and model.safetensors; make it from the published "
            "imagebind_huge.pth with `fourm-lite convert FILE -o OUT`"
        )
    with without_storage():
        model = ImageBindVision(ImageBindConfig.read(paths[0]))
    weights = {name: value.float() for name, value in load_tensors(paths[1]).items()}
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"'{paths[1]}' does not fit its config.json: {error}") from error
    return model


def _vector(model: ImageBindVision, pixels: Tensor, output: Output) -> Tensor:
    tokens = model.tokens(pixels)
    return tokens[:, 0] if output == "class_token" else model.project(tokens)


def _tower(
    prepare: Preprocess, device: str, network: Callable[[Tensor], Tensor]
) -> Callable[[list[Image]], Tensor]:
    def embed(images: list[Any]) -> Tensor:
        return network(pixels_of(prepare, images).to(device))

    return embed


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=NORM_EPS)
