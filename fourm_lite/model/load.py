"""Opening a FourM model: from our own format or a published 4M checkpoint, whole or narrowed.

Nothing is initialised that is then overwritten: the model is built without storage and takes the
mapped tensors of the file. Only the modalities that are asked for are read. `narrowed` makes
another model of the same weights, for other grids too where the config says that positions are
interpolated (TerraMind's); 4M's position tables fit one grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fourm_lite.batch import TokenBatch
from fourm_lite.errors import CheckpointError, ConfigError, ShapeError
from fourm_lite.families.masked import fork_of_config, published_for
from fourm_lite.io.weights_file import FLOATING
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.model.speed import Precision, linear_maps, precision_of
from fourm_lite.nn.cpu_linear import SCALE, HalfLinear, Int8Linear, RoundedLinear
from fourm_lite.nn.device import usable_device, without_storage
from fourm_lite.nn.posemb import resize_table

QK_NORM = "encoder.0.attn.q_norm.weight"

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint, Source


def load_model(
    source: Source,
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> FourM:
    """A model in eval mode.

    Args:
        source: a folder, a .safetensors file, a hub id, the name of a shipped model, or an open
            checkpoint
        inputs: names of the modalities to read; all by default
        outputs: names of the modalities to predict; all by default
        dtype: what the weights are held as: float32 by default, whatever floats the file holds.
            On the CPU "float16" and "int8" hold the maps of the blocks and the logits so, and
            compute everything else in float32; a model that was saved as int8 is opened as such
        device: the CPU by default

    Raises:
        CheckpointError: the file is damaged, or does not fit its config
        ConfigError: the config is wrong
        UnknownNameError: a modality that the model does not have

    Example:
        >>> model = load_model("EPFL-VILAB/4M-21_B", inputs=["rgb@224"],
        ...                    outputs=["tok_dinov2_global"])  # doctest: +SKIP
    """
    from fourm_lite.io.checkpoint import read

    device = usable_device(device)
    checkpoint = read(source)
    full = model_config(checkpoint)
    model = build_empty(full)
    _check_complete(model, checkpoint)
    if inputs is not None or outputs is not None:
        model = build_empty(full.only(inputs, outputs))
    fill(model, checkpoint, dtype=dtype, device=device)
    model.tie()
    family = published_for(checkpoint.config)
    model.family = None if family is None else family.name
    return model.eval()


def model_config(checkpoint: Checkpoint) -> FourMConfig:
    """The config of a checkpoint, ours or ml-4m's."""
    from fourm_lite.io.checkpoint import check_sizes
    from fourm_lite.io.ml4m import fourm_config

    config = dict(checkpoint.config)
    if "format" not in config:
        family = fork_of_config(config)
        domains = [config.get(key) for key in ("domains_in", "domains_out")]
        names = [n for side in domains if isinstance(side, list) for n in side]
        known = {**MODALITIES, **family.entries(n for n in names if isinstance(n, str))}
        left_out = {**family.defaults, "qk_norm": QK_NORM in checkpoint.tensors}
        config = fourm_config(config, checkpoint, known, left_out) | dict(family.rules)
    config.pop("extra", None)
    full = FourMConfig.from_dict(config)
    check_sizes(full.to_dict(), checkpoint.tensors)  # before anything of these sizes is built
    return full


def build_empty(config: FourMConfig) -> FourM:
    """The modules without storage.

    Raises:
        ConfigError: numbers or names that no module can have
    """
    with without_storage():
        return FourM(config)


def fill(
    model: torch.nn.Module,
    checkpoint: Checkpoint,
    *,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Gives a module without storage the tensors of a checkpoint, by name.

    Converted while the file is mapped: beside what was made there is one tensor in memory.

    Raises:
        CheckpointError: a tensor is missing, or has another shape or kind of number
        ConfigError: the CPU alone computes with such weights, or there are none such
    """
    expected = model.state_dict()
    tied = bool(getattr(getattr(model, "config", None), "tied_tables", False))
    source = {name: stored_name(name, checkpoint, tied=tied) for name in expected}
    for name, stored in source.items():
        _check_tensor(name, expected[name], stored, checkpoint)
    precision = _precision(dtype, checkpoint, device)
    on_cpu = torch.device(device or "cpu").type == "cpu"
    rounded = linear_maps(model) if precision == "int8" or (precision, on_cpu) == HALF else {}
    kind = torch.float32 if rounded else getattr(torch, precision)
    left = {n: s for n, s in source.items() if n.rpartition(".")[0] not in rounded}
    weights = checkpoint.load(set(left.values()), dtype=kind, device=device)
    for name in [n for n in left.values() if checkpoint.tensors[n].dtype == "I8"]:
        weights[name] = _scaled(name, checkpoint).to(device, kind)
    for name, few_rows in rounded.items():
        model.set_submodule(name, _rounded(name, few_rows, source, checkpoint, precision))
    state = {name: weights[stored] for name, stored in left.items()}
    model.load_state_dict(state, strict=not rounded, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


HALF = ("float16", True)
"""float16 on the CPU, which has products for weights alone; elsewhere it is a type as any other."""


def _precision(
    dtype: str | torch.dtype | None, checkpoint: Checkpoint, device: torch.device | str | None
) -> Precision:
    precision = precision_of(dtype)
    if precision == "auto":
        holds_int8 = any(name.endswith(f".{SCALE}") for name in checkpoint.tensors)
        precision = "int8" if holds_int8 else "float32"
    if precision == "int8" and torch.device(device or "cpu").type != "cpu":
        raise ConfigError(
            f"int8 weights run on the CPU only, the device is {device}; use dtype='bfloat16' there"
        )
    return precision


def _rounded(
    name: str, few_rows: bool, source: Mapping[str, str], checkpoint: Checkpoint, how: Precision
) -> torch.nn.Module:
    """One linear map with its weights held as `how`; what it was made of is let go of."""
    from fourm_lite.io.weights_file import let_go

    stored = source[f"{name}.weight"]
    weight = mapped = checkpoint.load([stored])[stored]
    scale, scales = _scale(stored), None
    if scale in checkpoint.tensors:
        scales = checkpoint.load([scale])[scale]
        weight = mapped.float() * scales[:, None]
    wide, deep = weight.shape
    layer = torch.nn.Linear(deep, wide, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    if (bias := source.get(f"{name}.bias")) is not None:
        layer.bias = torch.nn.Parameter(checkpoint.load([bias], dtype=torch.float32)[bias])
    half = how == "float16"
    made = HalfLinear(layer) if half else Int8Linear(layer, few_rows=few_rows, scales=scales)
    let_go(mapped)
    return made


def _scale(weight: str) -> str:
    return weight.removesuffix("weight") + SCALE


def _scaled(name: str, checkpoint: Checkpoint) -> torch.Tensor:
    """Weights that a file holds as int8, as float32."""
    whole, scales = (checkpoint.load([n])[n] for n in (name, _scale(name)))
    return whole.float() * scales[:, None]


def stored_name(name: str, checkpoint: Checkpoint, *, tied: bool = False) -> str:
    """Under which name a tensor is stored: shared ones are stored once, under either name.

    `tied`: a target's token table may be stored under the name of its logits.
    """
    if name in checkpoint.tensors:
        return name
    if name in checkpoint.aliases:
        return checkpoint.aliases[name]
    if tied and name.endswith(".token_emb.weight"):
        twin = name.replace(".token_emb.", ".to_logits.")
        if twin in checkpoint.tensors:
            return twin
    if name.endswith(".mod_emb"):
        for here, there in (("encoder_", "decoder_"), ("decoder_", "encoder_")):
            twin = name.replace(f"{here}embeddings.", f"{there}embeddings.", 1)
            if twin in checkpoint.tensors:
                return twin
    return name


def _check_complete(model: FourM, checkpoint: Checkpoint) -> None:
    from fourm_lite.io.checkpoint import check_keys

    expected, config = model.state_dict(), model.config
    twins = [n for n in expected if n.endswith(".mod_emb")] * config.share_modality_embeddings
    twins += [n for n in expected if n.endswith(".token_emb.weight")] * config.tied_tables
    tied = config.tied_tables
    present = {n for n in twins if stored_name(n, checkpoint, tied=tied) in checkpoint.tensors}
    scales = {n for n in map(_scale, expected) if n in checkpoint.tensors}
    check_keys(expected, checkpoint.tensors, optional=present | scales)


def _check_tensor(name: str, want: torch.Tensor, stored: str, checkpoint: Checkpoint) -> None:
    info = checkpoint.tensors.get(stored)
    if info is None:
        raise CheckpointError(f"{checkpoint.source} lacks the tensor {name!r}")
    if tuple(info.shape) != tuple(want.shape):
        raise CheckpointError(
            f"{checkpoint.source}: {name!r} should have shape {list(want.shape)} by the config, "
            f"the file holds {list(info.shape)}; the config and the weights are of different models"
        )
    scale = checkpoint.tensors.get(_scale(stored))
    if info.dtype == "I8" and scale is not None:
        if scale.dtype != "F32" or scale.shape != info.shape[:1]:
            raise CheckpointError(
                f"{checkpoint.source}: {_scale(stored)!r} should hold F32 of shape "
                f"{list(info.shape[:1])}, the file holds {scale.dtype} of {list(scale.shape)}"
            )
    elif info.dtype not in FLOATING:
        raise CheckpointError(
            f"{checkpoint.source}: {name!r} should hold floating-point numbers "
            f"({', '.join(sorted(FLOATING))}), the file holds {info.dtype}"
        )


Grid = tuple[int, int]


def narrowed(
    model: FourM,
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    grids: Mapping[str, Grid] | None = None,
) -> FourM:
    """A model of some of the modalities, for other grids, on the same weights; in eval mode.

    Args:
        model: stays as it is
        inputs: what its encoder reads; all by default
        outputs: what its decoder predicts; all by default
        grids: rows and columns of tokens, by modality; those of the tables by default
    Raises:
        ConfigError: another grid for a model whose positions are stored for one
        UnknownNameError: a modality that the model does not have
    """
    config = model.config.only(inputs, outputs)
    changed = {
        name: grid
        for name, grid in (grids or {}).items()
        if model.modality(name).grid not in (None, grid)
    }
    if changed and config.positions != "interpolated":
        name, grid = next(iter(changed.items()))
        raise ConfigError(
            f"'{name}' has positions for a grid of {model.modality(name).grid}, got {grid}; this "
            "model reads one size, so resize the picture"
        )
    sized = replace(
        config,
        inputs=tuple(_sized(m, changed) for m in config.inputs),
        outputs=tuple(_sized(m, changed) for m in config.outputs),
    )
    found = build_empty(sized)
    layers = {name: model.get_submodule(name) for name in linear_maps(found)}
    rounded = {name: m for name, m in layers.items() if isinstance(m, RoundedLinear)}
    held, wanted = model.state_dict(), found.state_dict()
    state = {name: held[name] for name in wanted if name.rpartition(".")[0] not in rounded}
    for name, layer in rounded.items():
        found.set_submodule(name, layer)
    for name, grid in changed.items():
        for side in ("encoder", "decoder"):
            key = f"{side}_embeddings.{name}.pos_emb"
            if key in state:
                state[key] = resize_table(state[key], model.modality(name).grid or grid, grid)
    found.load_state_dict(state, strict=not rounded, assign=True)
    found.tie()
    return found.eval()


def fitted(model: FourM, batch: TokenBatch, targets: Sequence[str]) -> FourM:
    """The model for the size of a batch's pictures and a chain of targets.

    The last target is not among its inputs: a text that is made is read by those after it alone. A
    model whose positions are stored stays as it is.

    Raises:
        ShapeError: pictures of one place with unlike grids
    """
    if model.config.positions != "interpolated":
        return model
    read = dict.fromkeys([*batch, *targets[:-1]])
    names = [n for n in read if n in model.encoder_embeddings]
    grids: dict[str, Grid] = {}
    for name in sorted(batch, key=lambda n: model.modality(n).kind != "pixels"):
        grid = _grid_in(model, name, batch, next(iter(grids.values()), None))
        grids |= {} if grid is None else {name: grid}
    if len(set(grids.values())) > 1:
        raise ShapeError(f"pictures of one place have one grid of tokens, got {grids}")
    maps = [n for n in (*names, *targets) if model.modality(n).kind != "sequence"]
    sized = {name: grid for grid in grids.values() for name in maps}
    return narrowed(model, inputs=names, outputs=dict.fromkeys(targets), grids=sized)


def _grid_in(model: FourM, name: str, batch: TokenBatch, seen: Grid | None) -> Grid | None:
    """Rows and columns of what a batch gives of a modality; None where it has no place.

    Tokens in a row lie as the pixels beside them do, as their table does, or in a square.
    """
    entry, value = model.modality(name), batch[name].value
    if entry.kind == "pixels":
        patch = entry.patch_size or 1
        return int(value.shape[2]) // patch, int(value.shape[3]) // patch
    if entry.kind != "grid" or entry.grid is None:
        return None
    known = (grid for grid in (seen, entry.grid) if grid is not None)
    count = value.shape[1]
    return next((g for g in known if g[0] * g[1] == count), None) or square(count, name)


def _sized(entry: Modality, grids: Mapping[str, Grid]) -> Modality:
    if entry.name not in grids:
        return entry
    rows, columns = grids[entry.name]
    return replace(entry, grid=(rows, columns), max_tokens=rows * columns)


def square(count: int, name: str) -> Grid:
    """The square grid of so many tokens.

    Raises:
        ShapeError: they are no square

    >>> square(49, "tok_lulc@224")
    (7, 7)
    """
    side = int(count**0.5)
    if side * side != count or count == 0:
        raise ShapeError(f"tokens of '{name}' form a square, got {count} of them")
    return side, side
