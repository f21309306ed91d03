"""FMViT: the encoder of a 4M model as a vision transformer, with timm's vocabulary.

It reads one pixel modality. At the size of the checkpoint it gives the numbers of the original; for
other sizes that are multiples of the patch the position table is resized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.batch import Tokens
from fourm_lite.errors import CheckpointError, ConfigError, ShapeError, suggest
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FORMAT, FourMConfig
from fourm_lite.model.embeddings import PixelEncoder
from fourm_lite.nn.blocks import Block, BlockConfig, depth_rates
from fourm_lite.nn.norm import LayerNorm
from fourm_lite.nn.posemb import resize_table


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """What an FMViT is made of.

    Units:
        num_classes: 0 for no classifier; forward then gives the pooled features
    """

    pixels: Modality
    block: BlockConfig
    depth: int = 12
    num_classes: int = 1000
    class_names: tuple[str, ...] = ()
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuses contradictions."""
        if self.pixels.kind != "pixels":
            raise ConfigError(f"FMViT reads pixels, '{self.pixels.name}' is {self.pixels.kind}")
        if self.num_classes < 0:
            raise ConfigError(f"num_classes must be 0 or more, got {self.num_classes}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(
                f"{len(self.class_names)} class names for num_classes={self.num_classes}"
            )

    @classmethod
    def of(cls, config: FourMConfig, **changes: Any) -> ViTConfig:
        """The ViT inside a FourM config: its smallest pixel modality."""
        pixels = [m for m in config.inputs if m.kind == "pixels"]
        if not pixels:
            raise ConfigError(
                f"this model reads no pixels, only {[m.name for m in config.inputs]}; "
                "FMViT needs a model with an rgb input"
            )
        own = [m for m in pixels if m.image_size == config.image_size] or pixels
        rate = config.drop_path_rate_encoder
        values = {"depth": config.encoder_depth, "drop_path_rate": rate, **changes}
        return cls(pixels=own[0], block=config.block, **values)

    def to_dict(self) -> dict[str, Any]:
        """JSON values under the format number of this version."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["pixels"] = self.pixels.to_dict()
        own["block"] = {f.name: getattr(self.block, f.name) for f in fields(BlockConfig)}
        own["class_names"] = list(self.class_names)
        return {"format": FORMAT, "kind": "fmvit", **own}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ViTConfig:
        """The config behind `to_dict`.

        Raises:
            ConfigError: an unknown key, or a newer format
        """
        values = {k: v for k, v in data.items() if k not in ("format", "kind", "extra")}
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"an fmvit config has no key {key!r}.{suggest(key, known)}")
        try:
            values["pixels"] = Modality.from_dict(values["pixels"])
            values["block"] = BlockConfig(**values["block"])
            values["class_names"] = tuple(values.get("class_names", ()))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"cannot read this fmvit config: {error}") from error


class FMViT(nn.Module):
    """A ViT on 4M weights; `encoder_embeddings`, `encoder`, `encoder_norm` are 4M's names."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.block.dim
        name = config.pixels.name
        self.encoder_embeddings = nn.ModuleDict({name: PixelEncoder(config.pixels, dim)})
        rates = depth_rates(config.drop_path_rate, config.depth)
        self.encoder = nn.ModuleList(Block(config.block, drop_path=r) for r in rates)
        self.encoder_norm = LayerNorm(dim, bias=config.block.norm_bias)
        self._add_classifier(config.num_classes)

    @property
    def num_features(self) -> int:
        """Width of a token."""
        return self.config.block.dim

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        return self.config.num_classes

    @property
    def patch_embed(self) -> PixelEncoder:
        """The pixel embedding."""
        return self.encoder_embeddings[self.config.pixels.name]  # type: ignore[return-value]

    def _add_classifier(self, num_classes: int) -> None:
        dim = self.config.block.dim
        self.fc_norm: nn.Module = LayerNorm(dim) if num_classes else nn.Identity()
        self.head: nn.Module = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def get_classifier(self) -> nn.Module:
        """The last linear map."""
        return self.head

    def reset_classifier(self, num_classes: int, class_names: tuple[str, ...] = ()) -> None:
        """Replaces the classifier by a freshly drawn one."""
        self.config = replace(self.config, num_classes=num_classes, class_names=tuple(class_names))
        where = self.encoder_norm.weight
        self._add_classifier(num_classes)
        self.fc_norm.to(where.device, where.dtype)
        self.head.to(where.device, where.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Token features of images: float[B, C, H, W] -> float[B, N, D].

        Raises:
            ShapeError: wrong channels, or a side that is not a multiple of the patch size
        """
        tokens = self._embed(x)
        for block in self.encoder:
            tokens = block(tokens)
        return self.encoder_norm(tokens)

    def _embed(self, x: Tensor) -> Tensor:
        embedding, entry = self.patch_embed, self.config.pixels
        p = embedding.patch_size
        fits = x.ndim == 4 and x.shape[1] == entry.channels
        if not fits or x.shape[2] % p or x.shape[3] % p or 0 in x.shape[2:]:
            raise ShapeError(
                f"FMViT expects float[B, {entry.channels}, H, W] with H and W multiples of {p}, "
                f"got {list(x.shape)}"
            )
        grid = (x.shape[2] // p, x.shape[3] // p)
        assert entry.grid is not None
        valid = torch.ones(x.shape[0], grid[0] * grid[1], dtype=torch.bool, device=x.device)
        content = embedding.content(Tokens.given(x, valid, length=valid.shape[1]))
        table = resize_table(embedding.pos_emb, entry.grid, grid)
        return content + table + embedding.mod_emb

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools tokens float[B, N, D] and classifies them: float[B, num_classes]."""
        pooled = self.fc_norm(x.mean(dim=1))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images: float[B, C, H, W] -> float[B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        num_classes: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> FMViT:
        """A ViT from a 4M model, an ml-4m ViT, or one that was saved here; in eval mode.

        Without `num_classes` a saved classifier is kept, and a 4M model gets one of 1000 classes.

        Raises:
            CheckpointError: the file is damaged, or does not fit its config
        """
        from fourm_lite.backbone.load import load_vit

        return load_vit(source, num_classes=num_classes, dtype=dtype, device=device)

    def save(self, folder: str | Path) -> Path:
        """Writes config.json and model.safetensors, atomically; returns the folder."""
        from fourm_lite.io.checkpoint import write

        if self.encoder_norm.weight.is_meta:
            raise CheckpointError("this model has no weights yet and cannot be saved")
        return write(folder, self.config.to_dict(), self.state_dict())
