"""Schedules and logit filtering against the numbers of the original; no model is needed.

Every entry of a case is checked twice: with `original=True` it must be reproduced, and our own
default must agree with it wherever ours does not differ on purpose. These differences, each with
its condition, stand in `_check_ours_counts`, `_check_temperatures`, `_check_refused` and
`_check_ties`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fourm_lite.errors import FourMError
from fourm_lite.modalities.spec import Modality
from fourm_lite.sampling.logits import filter_logits
from fourm_lite.sampling.plan import Plan, Step, Target
from fourm_lite.sampling.schedule import (
    Constant,
    Linear,
    OneOverX,
    Temperature,
    remaining_counts,
    token_counts,
)

RELATIVE = 1e-9  # both sides compute in float64


def check_schedules(case) -> None:
    _only_keys(case.info, {"grid", "chains", "note"})
    assert case.info.get("grid") or case.info.get("chains"), "the case holds nothing to check"
    for entry in case.info.get("grid", []):
        _check_grid_entry(entry)
    for entry in case.info.get("chains", []):
        _check_chain(entry)


def _check_grid_entry(entry: dict[str, Any]) -> None:
    _only_keys(
        entry, {"fn", "name", "num_steps", "total_tokens", "tokens", "sum", "temps", "continue"}
    )
    assert entry["fn"] == "token_schedule", f"unknown function {entry['fn']!r}"
    total, steps, order = entry["total_tokens"], entry["num_steps"], entry["name"]

    counts = token_counts(total, steps, order, original=True)

    assert counts == entry["tokens"]
    assert sum(counts) == entry["sum"]
    _check_ours_counts(token_counts(total, steps, order), entry["tokens"], total)
    for text, expected in entry.get("temps", {}).items():
        _check_temperatures(_golden_rule(text), counts, expected)
    for done, expected in entry.get("continue", {}).items():
        _check_rest(counts, int(done), expected)


def _check_ours_counts(ours: list[int], theirs: list[int], total: int) -> None:
    """Ours leaves out steps that reveal nothing, and never ends below zero."""
    assert sum(ours) == total
    assert all(count > 0 for count in ours)
    if min(theirs) >= 0:
        assert ours == [count for count in theirs if count]


def _check_rest(counts: list[int], done: int, expected: list[int] | str) -> None:
    if isinstance(expected, str):  # the original raises where nothing is left
        assert remaining_counts(counts, done) == []
    else:
        assert remaining_counts(counts, done) == expected


def _golden_rule(text: str) -> Temperature:
    name, _, rest = text.partition(":")
    if name == "onex":
        numbers, _, start = rest.partition("@")
        minimum, power = numbers.split(":")
        return OneOverX(float(minimum), float(power), float(start))
    assert name in ("linear", "constant"), f"unknown temperature schedule {text!r}"
    return {"linear": Linear, "constant": Constant}[name](float(rest))


def _check_temperatures(rule: Temperature, counts: list[int], expected: list[float] | str) -> None:
    ours = rule.at(counts)
    lost = isinstance(expected, str) or any(math.isnan(value) for value in expected)
    if lost:  # the original divides zero by zero when there is one token
        assert sum(counts) == 1
        assert all(math.isfinite(value) for value in ours)
    else:
        assert ours == pytest.approx(expected, rel=RELATIVE, abs=0)


def _check_chain(entry: dict[str, Any]) -> None:
    _only_keys(entry, {"args", "schedule", "error"})
    args = entry["args"]
    _only_keys(
        args, {"cond", "targets", "ntok", "schemes", "steps", "tsch", "temps", "tmpsch", "cfg",
               "grow"},
    )  # fmt: skip
    expected = entry.get("schedule", entry.get("error"))
    if isinstance(expected, str):
        _check_refused(args, expected)
        return

    steps = _steps(args, original=True)

    assert len(steps) == len(expected)
    for i, (ours, theirs) in enumerate(zip(steps, expected, strict=True)):
        _check_step(ours, theirs, i)
    _check_ours_chain(args, expected)


def _check_step(ours: Step, theirs: dict[str, Any], index: int) -> None:
    _only_keys(
        theirs,
        {"target_domain", "scheme", "num_tokens", "temperature", "cfg_scale", "cfg_cond_domains"},
    )
    assert ours.index == index
    assert ours.target == theirs["target_domain"]
    assert ours.scheme == theirs["scheme"]
    assert ours.num_tokens == theirs["num_tokens"]
    assert ours.temperature == pytest.approx(theirs["temperature"], rel=RELATIVE, abs=0)
    assert list(ours.conditions) == theirs["cfg_cond_domains"]
    scale = theirs["cfg_scale"]
    if isinstance(scale, list):
        assert list(ours.guidance.values())[: len(scale)] == pytest.approx(scale)
    else:
        assert ours.guidance == pytest.approx(scale)


def _check_ours_chain(args: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    """Ours reveals every target whole, in the same order, and drops only empty steps."""
    steps = _steps(args, original=False)
    totals = _per_target(args, "ntok")
    for target, total in zip(args["targets"], totals, strict=True):
        own = [s.num_tokens for s in steps if s.target == target]
        theirs = [e["num_tokens"] for e in expected if e["target_domain"] == target]
        if theirs == [None]:
            assert own == [None]
        else:
            _check_ours_counts(own, theirs, total)
    assert list(dict.fromkeys(s.target for s in steps)) == args["targets"]


def _check_refused(args: dict[str, Any], error: str) -> None:
    """The original raises: for an integer guidance, which ours takes; else ours refuses too."""
    scales = _per_target(args, "cfg")
    if "UnboundLocalError" in error and any(isinstance(s, int) for s in scales):
        guided = {s.target: s.guidance for s in _steps(args, original=False)}
        for target, scale in zip(args["targets"], scales, strict=True):
            assert guided[target] == (float(scale) if args["cond"] else 1.0)
        return
    with pytest.raises((FourMError, TypeError, ValueError)):
        _steps(args, original=False)


def _steps(args: dict[str, Any], *, original: bool) -> tuple[Step, ...]:
    names = args["targets"]
    totals, schemes = _per_target(args, "ntok"), _per_target(args, "schemes")
    entries = {
        name: _modality(name, total, scheme)
        for name, total, scheme in zip(names, totals, schemes, strict=True)
    }
    targets = tuple(_target(args, i) for i in range(len(names)))
    plan = Plan(targets, grow_conditioning=args.get("grow", False), conditions=tuple(args["cond"]))
    return plan.steps(entries, args["cond"], original=original)


def _modality(name: str, total: int, scheme: str) -> Modality:
    if scheme == "autoregressive":
        return Modality(name=name, kind="sequence", vocab_size=300, max_tokens=total)
    return Modality(name=name, kind="grid", vocab_size=300, max_tokens=total, grid=(1, total))


def _target(args: dict[str, Any], i: int) -> Target:
    own = {key: _per_target(args, key)[i] for key in ("schemes", "steps", "tsch", "temps", "cfg")}
    parallel = own["schemes"] != "autoregressive"
    guidance = own["cfg"]
    if isinstance(guidance, list):
        # weights beyond the conditions are those of targets that were finished before
        guidance = dict(zip([*args["cond"], *args["targets"]], guidance, strict=False))
    return Target(
        args["targets"][i],
        scheme=own["schemes"],
        steps=own["steps"] if parallel else None,
        order=own["tsch"] if parallel else None,
        temperature=_chain_rule(_per_target(args, "tmpsch")[i], own["temps"]),
        guidance=guidance,
    )


def _chain_rule(text: str | None, start: float) -> Temperature:
    name, *numbers = (text or "constant").split(":")
    assert name in ("constant", "linear", "onex"), f"unknown temperature schedule {text!r}"
    rules = {"constant": Constant, "linear": Linear, "onex": OneOverX}
    return rules[name](*map(float, numbers), start=start)


def _per_target(args: dict[str, Any], key: str) -> list[Any]:
    value = args[key]
    return value if isinstance(value, list) else [value] * len(args["targets"])


def check_filtering(case) -> None:
    _only_keys(case.info, {"cases", "note"})
    assert case.info["cases"], "the case holds nothing to check"
    unchecked = set(case.tensors) - {"logits"}
    for entry in case.info["cases"]:
        _only_keys(entry, {"top_k", "top_p", "out"})
        _check_filtered(
            case.tensors["logits"], case.tensors[entry["out"]], entry["top_k"], entry["top_p"]
        )
        unchecked.discard(entry["out"])
    assert not unchecked, f"tensors that no entry names: {sorted(unchecked)}"


def _check_filtered(
    logits: torch.Tensor, expected: torch.Tensor, top_k: float, top_p: float
) -> None:
    theirs = filter_logits(logits, top_k, top_p, original=True)
    ours = filter_logits(logits, top_k, top_p)
    for out in (theirs, ours):
        assert torch.equal(out[_kept(out)], logits[_kept(out)]), "a kept logit was changed"
    assert torch.equal(_kept(theirs).sum(-1), _kept(expected).sum(-1))
    _check_ties(theirs, expected)
    low, high = _allowed_counts(filter_logits(logits, top_k, original=True), top_p)
    count = _kept(ours).sum(-1)
    assert ((low <= count) & (count <= high)).all()
    same = count == _kept(expected).sum(-1)
    _check_ties(ours[same], expected[same])


def _check_ties(out: torch.Tensor, expected: torch.Tensor) -> None:
    """The same logits are kept; which of equal ones, the original leaves to its sort."""
    assert torch.equal(out.sort(-1).values, expected.sort(-1).values)


def _allowed_counts(logits: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """How many ids the share may keep when the sums are off by the rounding of float32."""
    kept = _kept(logits).sum(-1)
    if not top_p:
        return kept, kept
    covered = logits.double().sort(-1, descending=True).values.softmax(-1).cumsum(-1)
    low, high = (1 + (covered <= top_p + off).sum(-1) for off in (-1e-6, 1e-6))
    return low.clamp(max=kept), high.clamp(max=kept)


def _kept(logits: torch.Tensor) -> torch.Tensor:
    return logits > -math.inf


def _only_keys(entry: dict[str, Any], known: set[str]) -> None:
    assert set(entry) <= known, f"parts that no check knows: {sorted(set(entry) - known)}"


CHECKS = {"schedules": check_schedules, "filtering": check_filtering}
