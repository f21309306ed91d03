"""Tiny models and batches for the tests: every kind of modality, a few tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.tokenization.words.spans import Marks

MARKS = Marks(pad=0, eos=3, sentinels=tuple(range(4, 12)))
TEXT_VOCAB = 40

PIXELS = Modality(
    name="rgb@16", kind="pixels", channels=3, image_size=16, patch_size=4, grid=(4, 4),
    max_tokens=16, directions=IN,
)  # fmt: skip
DEPTH = Modality(
    name="tok_depth@16", kind="grid", vocab_size=12, image_size=16, patch_size=4, grid=(4, 4),
    max_tokens=16,
)  # fmt: skip
GLOBAL = Modality(
    name="tok_global", kind="grid", vocab_size=7, image_size=16, patch_size=8, grid=(2, 2),
    max_tokens=4, pos_embed="learned",
)  # fmt: skip
CAPTION = Modality(
    name="caption", kind="sequence", vocab_size=TEXT_VOCAB, max_tokens=12, vocab="text"
)
FEATURES = Modality(name="t5", kind="features", channels=6, max_tokens=5, directions=IN)
INPUTS = (PIXELS, DEPTH, GLOBAL, CAPTION, FEATURES)
OUTPUTS = (DEPTH, GLOBAL, CAPTION)

STYLES: dict[str, dict[str, Any]] = {
    "gelu": {},
    "swiglu": {
        "act_layer": "SiLU", "gated_mlp": True, "qkv_bias": False, "proj_bias": False,
        "mlp_bias": False, "norm_bias": False, "share_modality_embeddings": False,
    },
    "qknorm": {"qk_norm": True, "decoder_sep_mask": False},
    "registers": {"num_register_tokens": 2, "decoder_causal_mask": True},
}  # fmt: skip


def tiny_config(style: str = "gelu", **changes: Any) -> FourMConfig:
    values = {
        "inputs": INPUTS, "outputs": OUTPUTS, "dim": 16, "encoder_depth": 2, "decoder_depth": 2,
        "num_heads": 2, "image_size": 16, "patch_size": 4, **STYLES[style], **changes,
    }  # fmt: skip
    return FourMConfig(**values)


def tiny_model(style: str = "gelu", *, seed: int = 0, scale: float = 10.0, **changes: Any) -> FourM:
    """A model in eval mode with weights large enough that its predictions differ."""
    generator = torch.Generator().manual_seed(seed)
    model = FourM(tiny_config(style, **changes))
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise)
            else:
                p.copy_(noise * (0.02 * scale if p.ndim > 1 else 0.1))
    return model.eval()


def tiny_batch(names: Sequence[str], size: int = 2, *, seed: int = 0) -> TokenBatch:
    """Everything of the named modalities is given."""
    g = torch.Generator().manual_seed(seed)
    values = {
        "rgb@16": (torch.randn(size, 3, 16, 16, generator=g), 16),
        "tok_depth@16": (torch.randint(0, 12, (size, 16), generator=g), 16),
        "tok_global": (torch.randint(0, 7, (size, 4), generator=g), 4),
        "caption": (torch.randint(12, TEXT_VOCAB, (size, 6), generator=g), 6),
        "t5": (torch.randn(size, 5, 6, generator=g), 5),
    }
    return TokenBatch({n: Tokens.given(values[n][0], length=values[n][1]) for n in names})


def hide_some(tokens: Tokens, *, seed: int = 0, share: float = 0.5) -> Tokens:
    """Some tokens given, the others targets."""
    g = torch.Generator().manual_seed(seed)
    given = torch.rand(tokens.inputs.shape, generator=g) < share
    return Tokens(tokens.value, inputs=given, targets=~given)
