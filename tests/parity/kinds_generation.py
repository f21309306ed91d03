"""Checks of generation against the original's runs, with the original's behaviour switched on.

The state before every image step is rebuilt from what the original wrote, since at temperature 0
its MaskGIT chooses positions by the tie-breaking of torch.topk. Target masks after a text was
generated are not compared: the original copies the input mask there (docs/differences.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from caseinfo import CaseInfo
from kinds_model import close
from legacy_batch import batch_of, names_in
from torch import Tensor

from fourm_lite import load_model, load_text_tokenizer
from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.model.fourm import FourM
from fourm_lite.model.likelihood import sequence_logits
from fourm_lite.sampling.passes import LEGACY_MARKS, Encoder, plan_passes
from fourm_lite.sampling.plan import Step
from fourm_lite.sampling.sampler import Sampler
from fourm_lite.sampling.schemes import Ends, decode_positions
from fourm_lite.sampling.state import StepResult

TEXT_FILE = "text_tokenizer_4m_wordpiece_30k.json"


@dataclass
class Run:
    """A case while it is replayed."""

    case: CaseInfo
    model: FourM
    sampler: Sampler
    seen: set[str] = field(default_factory=set)

    def tensor(self, key: str) -> Tensor:
        self.seen.add(key)
        return self.case.tensors[key]

    def has(self, key: str) -> bool:
        return key in self.case.tensors


def open_run(case: CaseInfo) -> Run:
    model = load_model(case.checkpoint()[1])
    return Run(case, model, Sampler(model, original=True))


def read_step(info: dict[str, Any], entry: dict[str, Any], index: int) -> Step:
    """One entry of the original's schedule."""
    scale = entry["cfg_scale"]
    conditions = tuple(entry["cfg_cond_domains"])
    guidance = dict(zip(conditions, scale, strict=True)) if isinstance(scale, list) else scale
    return Step(
        target=entry["target_domain"],
        scheme=entry["scheme"],
        num_tokens=entry["num_tokens"],
        temperature=entry["temperature"],
        guidance=guidance,
        conditions=conditions,
        top_k=info.get("top_k") or None,
        top_p=info.get("top_p") or None,
        index=index,
    )


def one_step(run: Run, batch: TokenBatch, step: Step) -> StepResult:
    (result,) = run.sampler.iterate(batch, [step], seed=run.case.info["seed"])
    return result


def check_generation(case: CaseInfo) -> None:
    run, batch = open_run(case), batch_of(case)
    info = case.info
    assert len(info["steps"]) <= len(info["schedule"])
    done = 0
    for index, entry in enumerate(info["schedule"]):
        step = read_step(info, entry, index)
        if step.scheme != "autoregressive" and step.num_tokens == 0:
            done += check_empty_step(run, batch, step)
            continue
        written = info["steps"][index]
        assert written["target"] == step.target
        if step.scheme == "autoregressive":
            batch = check_text_step(run, batch, step, written)
        else:
            batch = check_grid_step(run, batch, step, written)
        done += 1
    assert done == len(info["steps"])
    check_final(run, batch)
    unread = {k for k in case.tensors if not k.startswith("in.")} - run.seen
    assert not unread, f"unchecked: {sorted(unread)}"


def check_empty_step(run: Run, batch: TokenBatch, step: Step) -> int:
    """A step that writes nothing, which ours does not run; 1 where the case records it."""
    key, steps = f"step{step.index}.candidate_positions", run.case.info["steps"]
    if run.has(key):
        candidates = run.tensor(key).long()
        result = one_step(run, batch, replace(step, num_tokens=1))
        if candidates.shape[1]:
            assert torch.equal(result.candidates, candidates)
            check_passes(run, batch, step, candidates, result.logits)
        run.seen |= {k for k in run.case.tensors if k.startswith(f"step{step.index}.")}
    if step.index >= len(steps):
        return 0
    assert not any(map(len, steps[step.index].get("positions", [])))
    return 1


def check_grid_step(run: Run, batch: TokenBatch, step: Step, written: dict[str, Any]) -> TokenBatch:
    name, prefix = step.target, f"step{step.index}."
    candidates = run.tensor(f"{prefix}candidate_positions").long()
    positions, tokens = torch.tensor(written["positions"]), torch.tensor(written["tokens"])

    result = one_step(run, batch, step)
    assert torch.equal(result.candidates, candidates), f"{prefix}candidates"
    check_passes(run, batch, step, candidates, result.logits)

    lookup = torch.zeros_like(batch[name].value).scatter(
        1, candidates, torch.arange(candidates.shape[1]).expand_as(candidates)
    )
    rows = lookup.gather(1, positions)
    logits = result.logits.gather(1, rows[..., None].expand(-1, -1, result.logits.shape[-1]))
    if step.temperature <= 1e-10:
        check_greedy(run, logits, tokens, prefix)
    else:
        got = sorted_pairs(result.positions, result.ids)
        assert got == sorted_pairs(positions, tokens), f"{prefix}sampled"
    assert result.positions.shape == positions.shape
    return batch.with_({name: batch[name].reveal(positions, tokens)})


def check_passes(
    run: Run, batch: TokenBatch, step: Step, candidates: Tensor, guided: Tensor
) -> None:
    """The logits of every pass, and of their sum, at the candidates."""
    prefix = f"step{step.index}."
    given = [n for n in batch if n != step.target]
    passes = plan_passes(step.guidance, step.conditions, given)
    encoder, valid = Encoder(run.model, LEGACY_MARKS), torch.ones_like(candidates).bool()
    for which, title in zip(passes, ["cond", "uncond"], strict=False):
        with torch.inference_mode():
            context = encoder(batch, [which])
            y = decode_positions(run.model, step.target, candidates, valid, context)
            logits = run.model.logits(y, step.target)
        check_top(run, logits, f"{prefix}{title}.top4")
    assert run.has(f"{prefix}uncond.top4_values") == (len(passes) == 2)
    if run.has(f"{prefix}guided.top4_values"):
        check_top(run, guided, f"{prefix}guided.top4")


def check_top(run: Run, logits: Tensor, key: str) -> None:
    values, ids = run.tensor(f"{key}_values"), run.tensor(f"{key}_ids").long()
    close(logits.gather(-1, ids), values, key)
    close(logits.topk(values.shape[-1], dim=-1).values, values, key)


def check_greedy(run: Run, logits: Tensor, tokens: Tensor, what: str) -> None:
    """The likeliest ids are the original's, but for near ties where the manifest allows them."""
    got = logits.argmax(dim=-1)
    wrong = got != tokens
    if not bool(wrong.any()):
        return
    assert run.case.case.get("near_tie"), f"{what}: {int(wrong.sum())} ids differ"
    gap = logits.max(dim=-1).values - logits.gather(-1, tokens[..., None])[..., 0]
    assert gap[wrong].max() < 2e-4 * logits.abs().max(), f"{what}: ids differ beyond a tie"


def sorted_pairs(positions: Tensor, ids: Tensor) -> list[list[tuple[int, int]]]:
    return [
        sorted(zip(p, i, strict=True))
        for p, i in zip(positions.tolist(), ids.tolist(), strict=True)
    ]


def check_text_step(run: Run, batch: TokenBatch, step: Step, written: dict[str, Any]) -> TokenBatch:
    name, prefix = step.target, f"step{step.index}."
    sequence = run.tensor(f"{prefix}ar.sequence").long()
    ends = Ends.of(batch[name])
    assert torch.equal(sequence[:, 0], ends.start)

    check_text_logits(run, batch, step, sequence)
    result = one_step(run, batch, step)
    said = torch.cat([ends.start[:, None], result.ids], dim=1)
    if not run.case.case.get("near_tie"):
        assert torch.equal(said, sequence), f"{prefix}sequence"
    elif torch.equal(said, sequence) is False:
        return replayed(run, batch, name, ends, sequence)
    text = load_text_tokenizer(run.case.golden_root / TEXT_FILE)
    merged = result.batch[name]
    for row, expected in enumerate(written["text"]):
        ids = merged.value[row].tolist()  # padding included, as in the original
        assert text.decode(ids) == expected, f"{prefix}text"
    return result.batch


def replayed(run: Run, batch: TokenBatch, name: str, ends: Ends, sequence: Tensor) -> TokenBatch:
    """After a near tie went the other way: the batch as the original left it."""
    from fourm_lite.sampling.schemes import merged

    tokens = merged(batch[name], ends.start, sequence[:, 1:].tolist(), LEGACY_MARKS)
    return batch.with_({name: tokens})


def check_text_logits(run: Run, batch: TokenBatch, step: Step, sequence: Tensor) -> None:
    """The logits of every token, given the tokens before it, in every pass."""
    key = f"step{step.index}.ar.top4"
    given = [n for n in batch if n != step.target]
    passes = plan_passes(step.guidance, step.conditions, given)
    encoder, every = Encoder(run.model, LEGACY_MARKS), []
    with torch.inference_mode():
        for which in passes:
            context = encoder(batch, [which])
            every.append(sequence_logits(run.model, step.target, sequence[:, :-1], context))
    alternating = torch.stack(every, dim=2).flatten(1, 2)  # [B, T * passes, V]
    check_top(run, alternating, key)
    if step.temperature <= 1e-10:
        guided = every[0]
        if len(every) == 2:
            guided = every[1] + passes[0].weight * (every[0] - every[1])
        check_greedy(run, guided, sequence[:, 1:], key)


def check_final(run: Run, batch: TokenBatch, prefix: str = "out.") -> None:
    for name in names_in(run.case, prefix):
        inputs = ~run.tensor(f"{prefix}{name}.input_mask")
        tokens = batch[name]
        assert torch.equal(tokens.inputs, inputs), f"{name}: inputs"
        if f"{prefix}{name}.tensor" in run.case.tensors:
            stored = run.tensor(f"{prefix}{name}.tensor")
            assert torch.equal(tokens.value[inputs], stored.to(tokens.value)[inputs]), name
        entry = run.model.modality(name)
        if entry.kind in ("grid", "pixels"):
            assert torch.equal(tokens.targets, ~run.tensor(f"{prefix}{name}.target_mask")), name
        if run.has(f"{prefix}{name}.mask_valid"):  # features: what is valid is what is given
            assert torch.equal(tokens.inputs, run.tensor(f"{prefix}{name}.mask_valid"))
        run.seen.add(f"{prefix}{name}.target_mask")
        run.seen.add(f"{prefix}{name}.decoder_attention_mask")


def check_multi_guided(case: CaseInfo) -> None:
    run = open_run(case)
    targets = list(dict.fromkeys(s["target_domain"] for s in case.info["schedule"]))
    batch = merged_conditions(run, targets)
    numbers = iter(range(10**6))
    for index, entry in enumerate(case.info["schedule"]):
        finished = targets[: targets.index(entry["target_domain"])]
        conditions = [*entry["cfg_cond_domains"], *finished]
        step = read_step(case.info, {**entry, "cfg_cond_domains": conditions}, index)
        batch = check_multi_step(run, batch, step, numbers)
    # The original hides a finished target from the unconditional batch, which it returns.
    for name in targets:
        stored = run.tensor(f"out.{name}.tensor")
        assert torch.equal(batch[name].value, stored.to(batch[name].value)), name
        assert bool(batch[name].inputs.all())
    run.seen |= {k for k in case.tensors if k.startswith("out.")}
    unread = {k for k in case.tensors if not k.startswith("in.")} - run.seen
    assert not unread, f"unchecked: {sorted(unread)}"


def merged_conditions(run: Run, targets: list[str]) -> TokenBatch:
    """Targets of the unconditional batch, and each condition from its own."""
    parts: dict[str, Tokens] = dict(batch_of(run.case, targets, "in.uncond."))
    for i in range(10**6):
        names = names_in(run.case, f"in.cond{i}.")
        if not names:
            break
        for name in names:
            parts[name] = _condition(run, i, name)
    return TokenBatch(parts)


def _condition(run: Run, i: int, name: str) -> Tokens:
    from legacy_batch import tokens_of

    prefix = f"in.cond{i}."
    if f"{prefix}{name}.tensor" in run.case.tensors:
        return tokens_of(run.case, name, prefix)
    return Tokens(
        run.case.procedural(f"cond{i}.{name}"),
        inputs=~run.case.tensors[f"{prefix}{name}.input_mask"],
        targets=~run.case.tensors[f"{prefix}{name}.target_mask"],
    )


def check_multi_step(run: Run, batch: TokenBatch, step: Step, numbers: Any) -> TokenBatch:
    given = [n for n in batch if n != step.target and bool(batch[n].inputs.any())]
    passes = plan_passes(step.guidance, step.conditions, given)
    encoder = Encoder(run.model, LEGACY_MARKS)
    for which in passes:
        key = f"pass{next(numbers)}"
        positions = run.tensor(f"{key}.positions").long()
        with torch.inference_mode():
            context = encoder(batch, [which])
            valid = torch.ones_like(positions).bool()
            y = decode_positions(run.model, step.target, positions, valid, context)
            logits = run.model.logits(y, step.target)
        check_top(run, logits, f"{key}.top4")
    return one_step(run, batch, step).batch


def check_sam_dense(case: CaseInfo) -> None:
    run, batch = open_run(case), batch_of(case)
    info = case.info
    steps = [
        replace(read_step(info, entry, i), copies=info["batch_size"])
        for i, entry in enumerate(info["schedule"])
    ]

    result = run.sampler.run(batch, steps, seed=info["seed"])

    check_final(run, result)
    unread = {k for k in case.tensors if not k.startswith("in.")} - run.seen
    assert not unread, f"unchecked: {sorted(unread)}"


CHECKS = {
    "generation": check_generation,
    "generation_multi_guided": check_multi_guided,
    "generation_sam_dense": check_sam_dense,
}
