"""A model with one modality more: its old weights as they were, new tables for the new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM

SIDES = ("encoder_embeddings", "decoder_embeddings")


def new_modality(name: str, tokens: int, codebook_size: int, title: str) -> Modality:
    """The entry of a global embedding of so many codes."""
    side = round(tokens**0.5)
    grid = (side, side) if side * side == tokens else (1, tokens)
    return Modality(
        name=name,
        kind="grid",
        vocab_size=codebook_size,
        grid=grid,
        max_tokens=tokens,
        pos_embed="learned",
        tokenizer=name,
        title=title or f"{name} embedding",
    )


def is_new(parameter: str, name: str) -> bool:
    """Whether a tensor belongs to the tables of a modality."""
    return any(parameter.startswith(f"{side}.{name}.") for side in SIDES)


def grow(model: FourM, entry: Modality, *, seed: int = 0) -> FourM:
    """The model with `entry` as a further input and target; all old weights are copied.

    The new tables begin at the scale of the old ones; positions begin as those of another global
    embedding with as many tokens, if the model has one.

    Raises:
        ConfigError: the model has a modality of that name
    """
    if entry.name in model.config.modalities:
        raise ConfigError(f"the model already has '{entry.name}'; choose another name")
    config = replace(
        model.config,
        inputs=(*model.config.inputs, entry),
        outputs=(*model.config.outputs, entry),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = FourM(config).init_weights()
    missing, extra = grown.load_state_dict(model.state_dict(), strict=False)
    lone = [name for name in missing if not is_new(name, entry.name)]
    if lone or extra:
        raise CheckpointError(f"the grown model does not fit the old one: {[*lone, *extra][:5]}")
    grown.tie()
    _start_tables(grown, entry)
    return grown.eval()


@torch.no_grad()
def _start_tables(model: FourM, entry: Modality) -> None:
    twin = _twin(model, entry)
    for side in SIDES:
        tables = getattr(model, side)
        new, old = tables[entry.name], [tables[n] for n in tables if n != entry.name]
        for part in ("mod_emb", "pos_emb"):
            if twin is not None:
                getattr(new, part).copy_(getattr(tables[twin], part))
            else:
                _match(getattr(new, part), [getattr(t, part) for t in old])
        grids = [t for t in old if hasattr(t, "token_emb")]
        _match(new.token_emb.weight, [t.token_emb.weight for t in grids])


def _twin(model: FourM, entry: Modality) -> str | None:
    """A global embedding of the model with as many tokens, read and predicted."""
    inputs = {m.name for m in model.config.inputs}
    for other in model.config.outputs:
        alike = (other.kind, other.pos_embed, other.max_tokens) == (
            "grid",
            "learned",
            entry.max_tokens,
        )
        if alike and other.name != entry.name and other.name in inputs:
            return other.name
    return None


def _match(table: Tensor, others: Sequence[Tensor]) -> None:
    """Scales a random table to the usual size of others."""
    sizes = [float(o.float().square().mean().sqrt()) for o in others]
    sizes = sorted(size for size in sizes if size > 0)
    if sizes:
        table.mul_(sizes[len(sizes) // 2] / table.square().mean().sqrt().clamp(min=1e-12))
