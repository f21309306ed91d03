"""What a backbone gets for a task: heads, and low-rank updates of its linear maps.

A head says how tokens become one vector, and how that becomes classes. It is described by a
`HeadConfig` and never passed as a module, so that it can be saved. Of low-rank updates under two
per cent of the weights are trained, then merged. Unusual: an adapted map keeps the names of its
weights, so a model with adapters still takes a plain state dict and `merge` leaves exactly the
model that was there before.

Source:
    LoRA (Hu et al. 2021)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from fourm_lite.backbone.config import HeadConfig
from fourm_lite.errors import ConfigError
from fourm_lite.nn.attention import CrossAttention, blocked
from fourm_lite.nn.layers import LayerNorm


class AttentivePool(nn.Module):
    """A learned query that attends to the tokens.

    Source:
        Set Transformer (Lee et al. 2019); the attentive probe of CAE and V-JEPA
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        self.norm = LayerNorm(dim)
        self.attn = CrossAttention(dim, num_heads)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """float[B, N, D], bool[B, N] -> float[B, D]."""
        bias = None if valid is None else blocked(valid, x.dtype)[:, None, None, :]
        query = repeat(self.query, "1 q d -> b q d", b=x.shape[0])
        pooled = self.attn(query, self.attn.keys_values(self.norm(x)), bias)
        return rearrange(pooled, "b 1 d -> b d")


class MeanPool(nn.Module):
    """The mean of the tokens that are there."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """float[B, N, D], bool[B, N] -> float[B, D]."""
        if valid is None:
            return x.mean(dim=1)
        present = valid[..., None].to(x.dtype)
        return (x * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)


class NoPool(nn.Module):
    """The tokens as they are."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """float[B, N, D] -> float[B, N, D]."""
        return x


def make_pool(config: HeadConfig, dim: int, num_heads: int) -> nn.Module:
    """What turns tokens into one vector."""
    if config.pool == "attentive":
        return AttentivePool(dim, num_heads)
    return MeanPool() if config.pool == "avg" else NoPool()


def make_norm(config: HeadConfig, dim: int) -> nn.Module:
    """The norm before the classifier; without a classifier there is none."""
    return LayerNorm(dim) if config.num_classes else nn.Identity()


def make_classifier(config: HeadConfig, dim: int) -> nn.Module:
    """The linear maps of the head, freshly drawn."""
    if not config.num_classes:
        return nn.Identity()
    maps: list[nn.Module] = []
    for _ in range(config.layers - 1):
        maps += [_linear(dim, dim), nn.GELU()]
    last = _linear(dim, config.num_classes)
    dropout = [nn.Dropout(config.dropout)] if config.dropout else []
    return nn.Sequential(*maps, *dropout, last) if maps or dropout else last


def _linear(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which maps get an update, and how large.

    Units:
        rank: 0 chooses by the width: an update of at most 1.6 % of a block's weights
        alpha: the update is multiplied by alpha / rank; 0 takes twice the rank
        targets: last parts of the names of linear maps
    """

    rank: int = 0
    alpha: float = 0.0
    targets: tuple[str, ...] = ("qkv", "proj")

    def __post_init__(self) -> None:
        """Refuses what no update has."""
        if self.rank < 0 or self.alpha < 0 or not self.targets:
            raise ConfigError(f"LoRA needs rank and alpha of at least 0 and targets, got {self}")


class LoraLinear(nn.Linear):
    """y = W x + b + scale * B A x; A is drawn, B starts at zero."""

    def __init__(self, plain: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.scale = scale
        like = plain.weight
        self.lora_a = nn.Parameter(like.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(like.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[..., in] to float[..., out]."""
        update = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * update

    def merged(self) -> nn.Linear:
        """The plain map with the update added to its weights."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        with torch.no_grad():
            weight = self.weight + self.scale * (self.lora_b @ self.lora_a)
        plain.weight = nn.Parameter(weight)
        plain.bias = self.bias
        return plain


def add_lora(model: nn.Module, config: LoraConfig | None = None) -> int:
    """Freezes the blocks of a model and gives their linear maps updates; returns how many.

    The head, its norm and its pool stay trainable.

    Raises:
        ConfigError: no linear map bears such a name
    """
    config = config or LoraConfig()
    freeze_backbone(model)
    found = [
        (parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent.named_children()
        if path.startswith("encoder.") and name in config.targets and type(child) is nn.Linear
    ]
    if not found:
        raise ConfigError(f"no linear map of the blocks is called {' or '.join(config.targets)}")
    for parent, name, child in found:
        rank = config.rank or max(1, min(8, child.in_features // 32))
        alpha = config.alpha or 2.0 * rank
        setattr(parent, name, LoraLinear(child, rank, alpha / rank))
    return len(found)


def freeze_backbone(model: nn.Module) -> None:
    """Leaves the head, its norm and its pool to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("head.", "fc_norm.", "pool.")))


def merge_lora(model: M) -> M:
    """Adds the updates to the weights and takes them away, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.merged())
    return model


def merged_copy(model: M) -> M:
    """A copy of the model with the updates in its weights; what is not adapted is shared."""
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return merge_lora(copy.deepcopy(model, memo))


def trainable_share(model: nn.Module, *, without: tuple[str, ...] = ("head.",)) -> float:
    """Trained weights over all weights of the model, the named parts not counted."""
    named = [(n, p) for n, p in model.named_parameters() if not n.startswith(without)]
    trained = sum(p.numel() for _, p in named if p.requires_grad)
    return trained / sum(p.numel() for n, p in named if not n.endswith(("lora_a", "lora_b")))
