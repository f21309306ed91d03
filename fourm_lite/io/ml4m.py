"""The boundary to ml-4m: its configurations in our own form. No other file knows them.

Tensor names need no translation: the modules of `fourm_lite.model` bear ml-4m's names. Forks of the
format (AION's astronomy, for one) bring modalities that no table knows, and their configs give
names only: such an entry is read off its tensors. The shapes tell the kind; the position table
tells a sequence from a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.io.checkpoint import SEQUENCE_ROWS, check_sizes, near
from fourm_lite.io.recipe import from_dict
from fourm_lite.nn.posemb import sincos_1d, sincos_2d

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint

SIDES = {"in": "encoder_embeddings", "out": "decoder_embeddings"}
MAX_TRIALS = 32


def infer_modality(
    name: str, checkpoint: Checkpoint, *, image_size: int, patch_size: int
) -> dict[str, Any] | None:
    """The entry of a modality as a dict; None when the file holds no tensor of it.

    Sizes of images come from the name ("x@448") or the model; a sequence may use all its positions.

    Raises:
        CheckpointError: the tensors do not tell what it is
    """
    directions = [side for side, table in SIDES.items() if _has(checkpoint, f"{table}.{name}.")]
    if not directions:
        return None
    prefix = f"{SIDES[directions[0]]}.{name}"
    shapes = {
        key.removeprefix(prefix + "."): info.shape
        for key, info in checkpoint.tensors.items()
        if key.startswith(prefix + ".")
    }
    entry: dict[str, Any] = {"name": name, "directions": directions}
    if "proj.weight" in shapes:
        return entry | _pixels(prefix, shapes, _size_of(name, image_size), patch_size)
    if "emb_proj.weight" in shapes:
        return entry | _features(prefix, shapes)
    if "token_emb.weight" in shapes:
        return entry | _tokens(prefix, shapes, checkpoint)
    raise CheckpointError(
        f"cannot tell what the modality {name[:80]!r} is: expected token_emb.weight, "
        f"proj.weight or emb_proj.weight under {prefix[:120]}, found {sorted(shapes)[:10]}; "
        "register it with fourm_lite.register(Modality(...))"
    )


def _has(checkpoint: Checkpoint, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in checkpoint.tensors)


def _size_of(name: str, image_size: int) -> int:
    digits = name.rpartition("@")[2] if "@" in name else ""
    return int(digits) if digits.isdecimal() and len(digits) <= 6 else image_size


def _rows(prefix: str, shapes: dict[str, tuple[int, ...]]) -> int:
    shape = shapes.get("pos_emb", ())
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 1:
        raise CheckpointError(
            f"'{prefix}.pos_emb' should have shape [1, positions, dim], got {list(shape)}"
        )
    return shape[1]


def _matrix(prefix: str, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    shape = shapes[name]
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"'{prefix}.{name}' should be a matrix, got shape {list(shape)}")
    return shape[0], shape[1]


def _pixels(
    prefix: str, shapes: dict[str, tuple[int, ...]], image_size: int, patch_size: int
) -> dict[str, Any]:
    rows, values = _rows(prefix, shapes), _matrix(prefix, "proj.weight", shapes)[1]
    side = math.isqrt(rows)
    for patch in (patch_size, image_size // side):
        if side * side == rows and patch > 0 and values % (patch * patch) == 0:
            return {
                "kind": "pixels",
                "channels": values // (patch * patch),
                "patch_size": patch,
                "image_size": side * patch,
                "grid": [side, side],
                "max_tokens": rows,
            }
    raise CheckpointError(
        f"cannot tell the patches of '{prefix}': {values} values a patch, {rows} positions; "
        "register the modality with fourm_lite.register(Modality(...))"
    )


def _features(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    channels = _matrix(prefix, "emb_proj.weight", shapes)[1]
    return {"kind": "features", "channels": channels, "max_tokens": _rows(prefix, shapes)}


def _tokens(
    prefix: str, shapes: dict[str, tuple[int, ...]], checkpoint: Checkpoint
) -> dict[str, Any]:
    rows, vocab = _rows(prefix, shapes), _matrix(prefix, "token_emb.weight", shapes)[0]
    entry = {"vocab_size": vocab, "max_tokens": rows}
    key = f"{prefix}.pos_emb"
    table = checkpoint.load([key], dtype=torch.float32)[key]
    if rows == SEQUENCE_ROWS and _equals(table, sincos_1d):
        return {"kind": "sequence", **entry}
    for grid in _grids(rows):
        if _equals(table, lambda _, dim, grid=grid: _grid_table(grid, dim)):  # type: ignore[misc]
            return {"kind": "grid", "grid": list(grid), **entry}
    return {"kind": "grid", "grid": list(next(_grids(rows))), "pos_embed": "learned", **entry}


def _grids(rows: int) -> Iterator[tuple[int, int]]:
    """Grids of so many cells: the square, then a single row, then the others."""
    side = math.isqrt(rows)
    if side * side == rows:
        yield side, side
    yield 1, rows
    trials = (h for h in range(2, rows) if rows % h == 0 and h * h != rows)
    for _, height in zip(range(MAX_TRIALS), trials, strict=False):
        yield height, rows // height


def _grid_table(grid: tuple[int, int], dim: int) -> Tensor:
    # as fourm_lite.model builds it: a single row of cells is a line
    return sincos_1d(grid[1], dim) if grid[0] == 1 and grid[1] > 1 else sincos_2d(*grid, dim)


def _equals(table: Tensor, build: Callable[[int, int], Tensor]) -> bool:
    rows, dim = table.shape[1:]
    if dim % 4:
        return False
    return torch.allclose(table, build(rows, dim), rtol=0.0, atol=1e-2)  # half precision fits


FORMAT = 1


class Entry(Protocol):
    """What this file asks of a known modality; `modalities.spec.Modality` is one."""

    @property
    def follows_model_size(self) -> bool:
        """Whether its grid follows the image size of the model."""

    @property
    def patch_size(self) -> int | None:
        """Pixels of a patch."""

    @property
    def is_target(self) -> bool:
        """Whether a decoder can predict it."""

    def sized(self, resolution: int) -> Entry:
        """The same for images of another size."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON values."""


@dataclass(frozen=True, kw_only=True)
class FMKeys:
    """The keys of an ml-4m config, and its defaults."""

    domains_in: list[str]
    domains_out: list[str]
    image_size: int
    patch_size: int
    dim: int = 768
    encoder_depth: int = 12
    decoder_depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    act_layer: str
    norm_bias: bool
    gated_mlp: bool = False
    qk_norm: bool = False
    share_modality_embeddings: bool = True
    decoder_causal_mask: bool = False
    decoder_sep_mask: bool = True
    num_register_tokens: int = 0
    drop_path_rate_encoder: float = 0.0
    drop_path_rate_decoder: float = 0.0
    shared_drop_path: bool = False
    use_act_checkpoint: bool = False

    def __post_init__(self) -> None:
        """Refuses numbers that no model has, and lists that name a modality twice."""
        for name, value in vars(self).items():
            if isinstance(value, int) and not 0 <= value <= MAX_SIZE:
                raise ConfigError(f"'{name}' should be 0 to {MAX_SIZE}, got {value!r:.40}")
        for key in ("domains_in", "domains_out"):
            _check_names(key, getattr(self, key))


# What a file of the ViT alone may leave out: none of it reaches the encoder. Its norms store a bias
# either way (zeros where the model has none).
VIT_DEFAULTS: dict[str, Any] = {"domains_out": [], "decoder_depth": 0, "norm_bias": True}
_TOKENIZER_KEYS = {"codebook_size", "quant_type", "enc_type", "dec_type", "latent_dim"}
MAX_SIZE = 1 << 20
FM_NAMES = tuple(f.name for f in fields(FMKeys))


def fourm_config(
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    modalities: Mapping[str, Entry],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An ml-4m FM (or FMViT) config in our own, self-describing form.

    `defaults` are keys that the files of a fork leave out. Names that `modalities` does not hold
    are inferred from the tensors; domains_out entries that no decoder can predict (t5_caption) are
    left out, as in ml-4m.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type
        CheckpointError: the config disagrees with the shapes in the file
    """
    values = _checked(config, checkpoint, defaults or {})
    names = {side: values.pop(f"domains_{side}") for side in ("in", "out")}
    entries = {
        name: _entry(name, checkpoint, modalities, values)
        for name in dict.fromkeys((*names["in"], *names["out"]))
    }
    own = {
        "format": FORMAT,
        "kind": "fourm",
        **values,
        "inputs": [_needed(entries[name], name) for name in names["in"]],
        "outputs": [
            _needed(entries[name], name)
            for name in names["out"]
            if _is_target(name, entries[name], modalities)
        ],
    }
    check_sizes(own, checkpoint.tensors)
    return own


def _checked(
    config: Mapping[str, Any], checkpoint: Checkpoint, left_out: Mapping[str, Any]
) -> dict[str, Any]:
    """Every key of `FMKeys` with a value of its type, defaults filled in."""
    for name in config:
        if name not in FM_NAMES:
            raise ConfigError(_unknown(name, config))
    keys = {**left_out, **_vit_defaults(checkpoint), **config}
    try:
        return vars(from_dict(FMKeys, keys))
    except ConfigError as error:
        raise ConfigError(f"the config of a 4M model: {error}") from error


def _unknown(name: str, config: Mapping[str, Any]) -> str:
    hint = near(str(name), FM_NAMES)
    if len(_TOKENIZER_KEYS & set(config)) >= 2:
        hint = " This looks like a tokenizer: open it with fourm_lite.load_tokenizer."
    return f"the config of a 4M model has no key {str(name)[:80]!r}.{hint}"


def _vit_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """Defaults for a file that holds no decoder."""
    if any(name.startswith(("decoder", "mask_token")) for name in checkpoint.tensors):
        return {}
    head = "encoder_embeddings."
    names = (name for name in checkpoint.tensors if name.startswith(head))
    inputs = dict.fromkeys(name.removeprefix(head).split(".", 1)[0] for name in names)
    return {**VIT_DEFAULTS, "domains_in": list(inputs)}


def _check_names(key: str, names: list[str]) -> None:
    for name in names:
        if not name or len(name) > 200:
            raise ConfigError(f"{key!r} should list names of modalities, got {name!r:.80}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{key!r} lists {twice!r} twice")


def _entry(
    name: str,
    checkpoint: Checkpoint,
    modalities: Mapping[str, Entry],
    values: Mapping[str, Any],
) -> dict[str, Any] | None:
    size, patch = values["image_size"], values["patch_size"]
    if name not in modalities:
        return infer_modality(name, checkpoint, image_size=size, patch_size=patch)
    entry = modalities[name]
    if entry.follows_model_size and entry.patch_size:
        entry = entry.sized(size // entry.patch_size * entry.patch_size)
    return entry.to_dict()


def _is_target(name: str, entry: dict[str, Any] | None, modalities: Mapping[str, Entry]) -> bool:
    if name in modalities:
        return modalities[name].is_target
    return entry is None or entry["kind"] != "features"


def _needed(entry: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if entry is None:
        raise ConfigError(
            f"the config names the modality {name!r}, which is neither known here nor has tensors "
            f"in the file; register it with fourm_lite.register(Modality(...))"
        )
    return entry
