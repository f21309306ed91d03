"""FMViT: the encoder of a 4M model as a backbone, with timm's vocabulary.

An image tensor is read as a vision transformer reads it; a `TokenBatch` of any modalities that the
model was opened with goes through the same blocks and the same head. At the size of the checkpoint
it gives the numbers of the original; for other sizes the position table is resized.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourm_lite.backbone.config import HeadConfig, ViTConfig, pool_of
from fourm_lite.backbone.embed import (
    Embedded,
    Indices,
    as_format,
    collect,
    embed_batch,
    embed_pixels,
    refuse_masks,
    take_indices,
)
from fourm_lite.backbone.heads import make_classifier, make_norm, make_pool
from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.io.checkpoint import Source, write
from fourm_lite.io.push import HubMixin
from fourm_lite.model.embeddings import ENCODERS, PixelEncoder
from fourm_lite.nn.blocks import Block, depth_rates
from fourm_lite.nn.layers import LayerNorm, draw_linear
from fourm_lite.nn.posemb import resize_table

__all__ = ["FMViT", "HeadConfig", "ViTConfig"]

_UNDECAYED = {"mod_emb", "pos_emb", "register_tokens", "query"}


class FMViT(HubMixin, nn.Module):
    """A ViT on 4M weights; `encoder_embeddings`, `encoder`, `encoder_norm` are 4M's names."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.block.dim
        self.encoder_embeddings = nn.ModuleDict(
            {m.name: ENCODERS[m.kind](m, dim) for m in config.inputs}
        )
        rates = depth_rates(config.drop_path_rate, config.depth)
        self.encoder = nn.ModuleList(Block(config.block, drop_path=r) for r in rates)
        self.encoder_norm: nn.Module = LayerNorm(dim, bias=config.block.norm_bias)
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, dim))
        self.grad_checkpointing = False
        self._add_head(config.head)
        self._describe()

    def _add_head(self, head: HeadConfig) -> None:
        block = self.config.block
        self.pool = make_pool(head, block.dim, block.num_heads)
        self.fc_norm = make_norm(head, block.dim)
        self.head = make_classifier(head, block.dim)

    def _describe(self) -> None:
        """Sets what this model reads and gives, in timm's words."""
        patch = self.config.pixels.patch_size if self.config.has_pixels else 1
        self.feature_info = [
            {"module": f"encoder.{i}", "num_chs": self.num_features, "reduction": patch}
            for i in range(len(self.encoder))
        ]
        size = self.input_size if self.config.has_pixels else None
        before = getattr(self, "pretrained_cfg", {})  # timm adds keys of its own
        self.default_cfg: dict[str, Any] = self.config.data_config(size, before)
        self.pretrained_cfg = self.default_cfg

    @property
    def num_features(self) -> int:
        """Width of a token."""
        return self.config.block.dim

    embed_dim = head_hidden_size = num_features

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        return self.config.num_classes

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the image that features contain; registers are dropped."""
        return 0

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the position table is made for."""
        entry = self.config.pixels
        assert entry.grid is not None
        assert entry.patch_size is not None
        assert entry.channels is not None
        rows, cols = entry.grid
        return entry.channels, rows * entry.patch_size, cols * entry.patch_size

    @property
    def patch_embed(self) -> PixelEncoder:
        """The pixel embedding."""
        return self.encoder_embeddings[self.config.pixels.name]  # type: ignore[return-value]

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, under timm's name."""
        return self.encoder

    def init_weights(self) -> FMViT:
        """Draws all weights, the head's too, from torch's generator, as for a model that is
        trained from nothing; norms scale by 1 and add 0.
        """
        for norm in self.modules():
            if isinstance(norm, LayerNorm):
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)
        draw_linear(self.encoder)
        for embedding in self.encoder_embeddings.values():
            embedding.init_weights()  # type: ignore[operator]
            if isinstance(embedding, PixelEncoder):
                nn.init.xavier_uniform_(embedding.proj.weight)
        if self.config.num_register_tokens:
            nn.init.normal_(self.register_tokens, std=0.02)
        self._renew_head()
        return self

    def get_classifier(self) -> nn.Module:
        """The last part: a linear map, or several."""
        return self.head

    def reset_classifier(
        self,
        num_classes: int,
        global_pool: str | None = None,
        *,
        class_names: Sequence[str] = (),
        head: HeadConfig | None = None,
    ) -> None:
        """Replaces the head by a freshly drawn one.

        Units:
            global_pool: timm's words "avg", "map" (attentive) or "" (tokens); None keeps the pool
            head: a whole description instead of the other arguments
        """
        if head is None:
            pool = self.config.head.pool if global_pool is None else pool_of(global_pool)
            head = replace(
                self.config.head, num_classes=num_classes, pool=pool, class_names=tuple(class_names)
            )
        self.config = replace(self.config, head=head)
        self._renew_head()
        self._describe()

    def _renew_head(self) -> None:
        where = self._first_embedding().mod_emb
        self._add_head(self.config.head)
        for part in (self.pool, self.fc_norm, self.head):
            part.to(where.device, where.dtype)

    def _first_embedding(self) -> Any:
        return next(iter(self.encoder_embeddings.values()))

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None
    ) -> None:
        """Resizes the position table of the pixels, once and for good.

        Raises:
            ConfigError: a side is not a multiple of the patch, or another patch size is asked for
        """
        entry = self.config.pixels
        if patch_size not in (None, entry.patch_size, (entry.patch_size, entry.patch_size)):
            raise ConfigError(f"the patches of 4M are {entry.patch_size} pixels, not {patch_size}")
        if img_size is None:
            return
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        p = self.patch_embed.patch_size
        if min(height, width) < p or height % p or width % p:
            raise ConfigError(f"img_size must be multiples of {p} pixels, got {height}x{width}")
        grid = (height // p, width // p)
        assert entry.grid is not None
        table = resize_table(self.patch_embed.pos_emb, entry.grid, grid).detach().clone()
        self.patch_embed.pos_emb = (
            nn.Parameter(table) if isinstance(self.patch_embed.pos_emb, nn.Parameter) else table
        )
        square = height if height == width else None
        sized = replace(entry, grid=grid, max_tokens=grid[0] * grid[1], image_size=square)
        entries = tuple(sized if m is entry else m for m in self.config.inputs)
        self.config = replace(self.config, inputs=entries)
        self.patch_embed.modality = sized
        self._describe()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone."""
        return {n for n, _ in self.named_parameters() if n.rsplit(".", 1)[-1] in _UNDECAYED}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, from the input to the output, for layer-wise decay."""
        stem = r"^encoder_embeddings|^register_tokens"
        if coarse:
            return {"stem": stem, "blocks": r"^encoder\.(\d+)"}
        return {"stem": stem, "blocks": [(r"^encoder\.(\d+)", None), (r"^encoder_norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory while training."""
        self.grad_checkpointing = enable

    def embed(self, x: Tensor | TokenBatch | Mapping[str, Tokens]) -> Embedded:
        """Tokens before the first block."""
        if isinstance(x, Tensor):
            return embed_pixels(self.patch_embed, self.config.pixels, x)
        batch = x if isinstance(x, TokenBatch) else TokenBatch(x)
        return embed_batch(self.encoder_embeddings, self.config.inputs, batch)

    def forward_features(self, x: Tensor | TokenBatch | Mapping[str, Tokens]) -> Tensor:
        """Token features of images or of a batch: float[B, N, D].

        Shapes:
            x: float[B, C, H, W], sides that are multiples of the patch; or modalities by name
        Raises:
            ShapeError: wrong channels, or a side that is not a multiple of the patch
            ConfigError: a modality that this model does not read
        """
        return self._features(self.embed(x))

    def _features(self, embedded: Embedded) -> Tensor:
        (tokens,) = deque(self._run(embedded), maxlen=1)  # the others are let go of at once
        return self._last(tokens, embedded)

    def _run(self, embedded: Embedded, last: int | None = None) -> Iterator[Tensor]:
        """The tokens after every block up to the one numbered `last`, registers taken away."""
        return collect(
            embedded,
            self.encoder if last is None else self.encoder[: last + 1],
            registers=self.register_tokens if self.config.num_register_tokens else None,
            call=self._call,
        )

    def _call(self, block: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, bias, use_reentrant=False)
        return block(x, bias)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Features after several blocks, as timm's models give them.

        Units:
            indices: None for all blocks, n for the last n, or block numbers (-1 is the last)
            return_prefix_tokens: accepted for timm's sake; an FMViT has no prefix tokens
            norm: the last norm is applied to each
            stop_early: later blocks are not run
            output_fmt: "NCHW" or "NLC"
        Shapes:
            returns: (float[B, N, D], list of float[B, D, Hq, Wq] or float[B, N, D]); the list alone
                with `intermediates_only`; both by name with `output_dict`
        Raises:
            ConfigError: `attn_mask` or `is_causal`, timm's words for less attention, are given
        """
        refuse_masks(attn_mask, is_causal)
        chosen, last = take_indices(len(self.encoder), indices)
        embedded = self.embed(x)
        every = list(self._run(embedded, last if stop_early else None))
        maps = [self.encoder_norm(every[i]) if norm else every[i] for i in chosen]
        maps = [as_format(m, output_fmt, embedded.grid) for m in maps]
        named = {"image_intermediates": maps}
        if intermediates_only:
            return named if output_dict else maps
        features = self._last(every[-1], embedded)
        return {**named, "image_features": features} if output_dict else (features, maps)

    def _last(self, tokens: Tensor, embedded: Embedded) -> Tensor:
        """The features of the last block's tokens."""
        normed: Tensor = self.encoder_norm(tokens)
        return normed if embedded.beside is None else normed + embedded.beside

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        attn_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Features of the last n blocks, or of the blocks that are named: DINO's interface.

        Raises:
            ConfigError: `attn_mask` is given
        """
        return self.forward_intermediates(
            x, n, norm=norm, output_fmt="NCHW" if reshape else "NLC", intermediates_only=True,
            attn_mask=attn_mask,
        )  # fmt: skip

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what features of these blocks do not need; returns their numbers."""
        chosen, last = take_indices(len(self.encoder), indices)
        self.encoder = self.encoder[: last + 1]
        self.config = replace(self.config, depth=last + 1)
        if prune_norm:
            self.encoder_norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        self._describe()
        return chosen

    def forward_head(
        self, x: Tensor, pre_logits: bool = False, *, valid: Tensor | None = None
    ) -> Tensor:
        """Pools tokens float[B, N, D] and classifies them: float[B, num_classes].

        Shapes:
            valid: bool[B, N] or None: which tokens there are
        """
        pooled = self.fc_norm(self.pool(x, valid))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor | TokenBatch | Mapping[str, Tokens]) -> Tensor:
        """Logits of images or of a batch: float[B, num_classes], or pooled features without."""
        embedded = self.embed(x)
        return self.forward_head(self._features(embedded), valid=embedded.valid)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits float[..., K] as probabilities: of one class, or of each with `multi_label`."""
        if self.config.head.multi_label:
            return logits.float().sigmoid()
        return logits.float().softmax(dim=-1)

    @classmethod
    def from_pretrained(
        cls,
        source: Source,
        *,
        num_classes: int | None = None,
        inputs: Iterable[str] | None = None,
        head: HeadConfig | None = None,
        dtype: str | torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> FMViT:
        """A ViT from a 4M model, an ml-4m ViT, or one that was saved here; in eval mode.

        Without `num_classes` or `head` a saved head is kept; a 4M model gets an untrained one of
        1000 classes, and says so. `inputs` names the modalities to read; without it those that
        were saved, and of a 4M model its pixels. `dtype`: as `load_model`.

        Raises:
            CheckpointError: the file is damaged, or does not fit its config
            ConfigError: the model reads no pixels and `inputs` is not given
        """
        from fourm_lite.backbone.load import load_vit

        return load_vit(
            source, num_classes=num_classes, inputs=inputs, head=head, dtype=dtype, device=device
        )

    def save(self, folder: str | Path, *, extra: Mapping[str, object] | None = None) -> Path:
        """Writes config.json and model.safetensors, atomically; returns the folder.

        `extra` adds keys to the config under "extra": what it was trained on, its licence.
        """
        if self._first_embedding().mod_emb.is_meta:
            raise CheckpointError("this model has no weights yet and cannot be saved")
        config = self.config.to_dict()
        if extra:
            config["extra"] = dict(extra)
        return write(folder, config, self.state_dict())
