"""Which weights of a VQControlNet checkpoint make up its tokenizer.

Such a checkpoint holds the encoder and codebook of a tokenizer beside a decoder that drives
Stable Diffusion. The first part loads strictly and tokenizes; the second is listed as unused,
whatever it is called, because it needs Stable Diffusion's own weights.
"""

from __future__ import annotations

from collections.abc import Iterable

TOKENIZER_PARTS = ("cls_emb.", "encoder.", "quant_proj.", "quantize.", "input_mean", "input_scale")


def split_keys(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the tokenizer's weights, and of all others.

    >>> split_keys(["encoder.proj.weight", "controlnet.conv_in.weight"])
    (['encoder.proj.weight'], ['controlnet.conv_in.weight'])
    """
    names = list(keys)
    ours = [name for name in names if name.startswith(TOKENIZER_PARTS)]
    return ours, [name for name in names if not name.startswith(TOKENIZER_PARTS)]
