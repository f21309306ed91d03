"""The fast paths give what the plain ones give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import eager, unbatched_maskgit, uncached_text
from tiny import MARKS, STYLES, tiny_batch, tiny_model

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.sampling import passes as guided
from fourm_lite.sampling.passes import Encoder, plan_passes
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Sampler, empty_sequence
from fourm_lite.sampling.schemes import decode
from fourm_lite.sampling.state import Job, Randomness


def ragged_batch() -> TokenBatch:
    """Rows with different numbers of given tokens and different ends."""
    batch = tiny_batch(["rgb@16", "tok_depth@16", "t5"], 4)
    given = torch.arange(16)[None] < torch.tensor([[3], [16], [0], [8]])
    tokens = replace(batch["tok_depth@16"], inputs=given)
    features = replace(
        batch["t5"], inputs=torch.tensor([[True] * n + [False] * (5 - n) for n in (5, 2, 1, 0)])
    )
    text = empty_sequence(4, 12, MARKS)
    ends = text.value.clone()
    ends[:, -1] = torch.tensor([6, 20, 25, 30])
    return batch.with_(
        {"tok_depth@16": tokens, "t5": features, "caption": replace(text, value=ends)}
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("guidance", [1.0, 2.5, {"rgb@16": 2.0, "t5": 1.5}])
def test_cached_text_equals_uncached_text(style, guidance):
    model, batch = tiny_model(style, scale=6.0), ragged_batch()
    target = Target("caption", temperature=0, guidance=guidance)
    (step,) = Sampler(model, marks=MARKS).steps(batch, Plan.of(target, conditions=["rgb@16", "t5"]))
    given = ["rgb@16", "tok_depth@16", "t5"]
    passes = plan_passes(step.guidance, step.conditions, given)

    with eager():
        said, logits = uncached_text(model, batch, "caption", passes, MARKS)
    with torch.inference_mode():
        context = Encoder(model, MARKS)(batch, passes)
        job = Job(
            model, step, batch["caption"], context, passes, Randomness.of_step(0, [0] * 4), MARKS
        )
        _, fast = decode(job, keep_logits=True)

    assert fast.rows == said
    active = [[r for r in range(4) if len(said[r]) > t] for t in range(len(fast.logits))]
    for t, rows in enumerate(active):
        torch.testing.assert_close(fast.logits[t], logits[rows, t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_joined_passes_equal_single_ones(guidance):
    model, batch = tiny_model(scale=6.0), tiny_batch(["rgb@16", "caption"], 3)
    target = Target("tok_depth@16", scheme="maskgit", steps=4, temperature=0, guidance=guidance)
    sampler = Sampler(model, marks=MARKS)
    steps = sampler.steps(batch, Plan.of(target))
    passes = plan_passes(steps[0].guidance, steps[0].conditions, list(batch))

    fast = sampler.run(batch, steps)["tok_depth@16"].value
    wanted = batch.with_({"tok_depth@16": Tokens.wanted(model.modality("tok_depth@16"), 3)})
    with eager():
        counts = [s.num_tokens for s in steps]
        plain = unbatched_maskgit(model, wanted, "tok_depth@16", counts, passes, MARKS)

    assert torch.equal(fast, plain)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("beside", [0, 4096])
@pytest.mark.parametrize("size", [1, 4])
def test_passes_of_other_lengths_in_one_row_equal_single_ones(style, beside, size, monkeypatch):
    """Items give other numbers of tokens, some nothing, and one pass may lack a context."""
    monkeypatch.setattr(guided, "BESIDE", beside)
    model, batch = tiny_model(style, scale=6.0), ragged_batch().rows(slice(2, 2 + size))
    batch = batch.without("caption", "tok_depth@16")
    target = Target("tok_depth@16", scheme="maskgit", steps=4, temperature=0, guidance=2.5)
    sampler = Sampler(model, marks=MARKS)
    steps = sampler.steps(batch, Plan.of(target, conditions=["rgb@16", "t5"]))
    counts = [s.num_tokens for s in steps]
    planned = plan_passes(steps[0].guidance, steps[0].conditions, list(batch))

    fast = sampler.run(batch, steps)["tok_depth@16"].value

    grid = Tokens.wanted(model.modality("tok_depth@16"), batch.size)
    wanted = batch.with_({"tok_depth@16": grid})
    with eager():
        plain = unbatched_maskgit(model, wanted, "tok_depth@16", counts, planned, MARKS)
    assert torch.equal(fast, plain)
