"""A golden case's batch, whose masks are inverted, as a TokenBatch."""

from __future__ import annotations

import torch
from caseinfo import CaseInfo

from fourm_lite.batch import TokenBatch, Tokens


def names_in(case: CaseInfo, prefix: str = "in.") -> list[str]:
    """Names of the modalities stored under a prefix, in the order of the manifest."""
    names: list[str] = []
    for key in case.case["tensors"]:
        if key.startswith(prefix):
            name = key.removeprefix(prefix).rsplit(".", 1)[0]
            if name not in names:
                names.append(name)
    return names


def tokens_of(case: CaseInfo, name: str, prefix: str = "in.", *, value_key: str | None = None):
    """One modality of a case: masks True = not used in the file, True = present here."""
    stored = case.tensors.get(f"{prefix}{name}.tensor")
    if stored is None:
        value = _procedural(case, name)
    else:
        value = stored.long() if not stored.is_floating_point() else stored.float()
    groups = case.tensors.get(f"{prefix}{name}.decoder_attention_mask")
    return Tokens(
        value,
        inputs=~case.tensors[f"{prefix}{name}.input_mask"],
        targets=~case.tensors[f"{prefix}{name}.target_mask"],
        groups=None if groups is None or groups.dtype == torch.bool else groups.long(),
    )


def _procedural(case: CaseInfo, name: str) -> torch.Tensor:
    known = case.info["procedural_inputs"]
    return case.procedural(name if name in known else f"{name}.tensor")


def batch_of(case: CaseInfo, names: list[str] | None = None, prefix: str = "in.") -> TokenBatch:
    """The batch stored under a prefix."""
    return TokenBatch({n: tokens_of(case, n, prefix) for n in names or names_in(case, prefix)})
