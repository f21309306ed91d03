"""Opening VQ tokenizers: from our own format, or from a published 4M tokenizer.

Nothing is initialised that is then overwritten: the modules are built without storage and take
the mapped tensors of the file, by name and strictly.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError, suggest
from fourm_lite.nn.device import usable_device, without_storage
from fourm_lite.tokenization.vq.config import TokenizerConfig, parse_config
from fourm_lite.tokenization.vq.vqvae import TWINS, VQTokenizer

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Source

log = logging.getLogger(__name__)

# Names of the ViT-VQGAN code that 4M's tokenizers grew from
RENAMED = ((re.compile(r"^(post_)?quant_conv(\.0)?\."), r"\1quant_proj."),)


def load_tokenizer(
    source: Source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> VQTokenizer:
    """A tokenizer in eval mode.

    `source` is a folder, a .safetensors file, a hub id or an open checkpoint; `dtype` is float32
    by default and spares the codebook, whose rounding would change tokens.

    Raises:
        CheckpointError: the file is damaged, or does not fit its config
        ConfigError: the config is wrong

    Example:
        >>> tokenizer = load_tokenizer("EPFL-VILAB/4M_tokenizers_rgb_16k_224-448")  # doctest: +SKIP
    """
    from fourm_lite.io.checkpoint import read

    device = usable_device(device)
    checkpoint = read(source)
    shapes = {name: tuple(info.shape) for name, info in checkpoint.tensors.items()}
    config, names = _plan(checkpoint.config, shapes)
    tables = [n for n in names if n.startswith("quantize.")]
    weights = checkpoint.load(
        [n for n in names if n not in set(tables)], dtype=dtype or torch.float32
    )
    weights |= checkpoint.load(tables, dtype=torch.float32)
    tokenizer = _built(config, weights, list(shapes))
    return tokenizer.to(device) if device is not None else tokenizer


def tokenizer_from_state(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> VQTokenizer:
    """A tokenizer in eval mode from a config and its tensors, which it takes as they are.

    Raises:
        CheckpointError: a tensor is missing, left over, or has another shape or kind of number
        ConfigError: the config is wrong
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    parsed, names = _plan(config, shapes)
    return _built(parsed, {name: weights[name] for name in names}, list(shapes))


def _plan(
    raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[TokenizerConfig, list[str]]:
    """The config, completed from shapes where an original one is silent, and the names to read."""
    current = {_current_name(name): shape for name, shape in shapes.items()}
    config = parse_config(raw if "format" in raw else _completed(raw, current), current)
    if config.kind != "VQControlNet":
        return config, list(shapes)
    return config, split_keys(shapes)[0]


def _completed(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """An original config with what only the shapes tell: number and width of the codebooks."""
    codes, embed = shapes.get("quantize.codes"), shapes.get("quantize._codebook.embed")
    found: dict[str, Any] = {}
    if raw.get("quant_type") == "fsq":
        return _finite(raw)
    if codes is not None and len(codes) == 3:
        found = {"quant_type": "memcodes", "num_codebooks": codes[0], "codebook_size": codes[1]}
    elif embed is not None and len(embed) == 2:
        found = {"codebook_size": embed[0], "codebook_dim": embed[1]}
    return {**found, **raw}


def _finite(raw: Mapping[str, Any]) -> dict[str, Any]:
    """TerraMind's config: `codebook_size` is its levels, "7-5-5-5-5"; class maps are read too."""
    text = str(raw.get("codebook_size", ""))
    if not re.fullmatch(r"\d{1,4}(-\d{1,4}){0,31}", text):
        raise ConfigError(
            f"a finite quantizer's codebook_size is like '7-5-5-5-5', got {text[:80]!r}"
        )
    levels = [int(number) for number in text.split("-")]
    own = {"levels": levels, "codebook_size": math.prod(levels), "one_hot": True}
    return {**raw, **own, "n_channels": raw.get("n_channels", 12)}


def _built(config: TokenizerConfig, weights: Mapping[str, Tensor], names: list[str]) -> VQTokenizer:
    with without_storage():
        tokenizer = VQTokenizer(config)
    expected = tokenizer.state_dict()
    state = _with_twins({_current_name(name): value for name, value in weights.items()}, expected)
    _check_names(expected, state)
    for name, want in expected.items():
        _check_tensor(name, want, state[name])
    tokenizer.load_state_dict(state, strict=True, assign=True)
    tokenizer.unused_weights = tuple(sorted(set(names) - set(weights)))
    if tokenizer.unused_weights:
        log.info("%d weights of Stable Diffusion are not used", len(tokenizer.unused_weights))
    return tokenizer.eval()


def _current_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _with_twins(state: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The state with tensors that a file stores under one of two names under both."""
    full = dict(state)
    for name in expected:
        for pair in (*TWINS, *(twin[::-1] for twin in TWINS)):
            other = name.replace(pair[0], pair[1])
            if name not in full and other != name and other in state:
                full[name] = state[other]
    return full


def _check_names(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if not missing and not extra:
        return
    parts = []
    for what, names, known in (("missing", missing, extra), ("unexpected", extra, expected)):
        if names:
            parts.append(f"{len(names)} {what}, the first {names[0]!r}.{suggest(names[0], known)}")
    raise CheckpointError(
        "the weights do not fit the tokenizer's config: " + " ".join(parts) + " Check enc_type, "
        "dec_type, quant_type and post_mlp"
    )


def _check_tensor(name: str, want: Tensor, got: Tensor) -> None:
    if got.shape != want.shape:
        raise CheckpointError(
            f"{name!r} should have shape {list(want.shape)} by the config, the weights hold "
            f"{list(got.shape)}; the config and the weights are of different tokenizers"
        )
    if not got.is_floating_point():
        raise CheckpointError(f"{name!r} should hold floating-point numbers, got {got.dtype}")


TOKENIZER_PARTS = ("cls_emb.", "encoder.", "quant_proj.", "quantize.", "input_mean", "input_scale")


def split_keys(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the tokenizer's weights, and of all others.

    >>> split_keys(["encoder.proj.weight", "controlnet.conv_in.weight"])
    (['encoder.proj.weight'], ['controlnet.conv_in.weight'])
    """
    names = list(keys)
    ours = [name for name in names if name.startswith(TOKENIZER_PARTS)]
    return ours, [name for name in names if not name.startswith(TOKENIZER_PARTS)]
