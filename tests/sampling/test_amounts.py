from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import eager, uncached_text
from tiny import MARKS, tiny_batch, tiny_model

from fourm_lite.sampling.logits import at_median
from fourm_lite.sampling.passes import Pass
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Sampler, empty_sequence

NUMBERS = (20, 21, 22, 23, 24)


def test_the_median_has_the_probability_of_all_amounts():
    probs = torch.tensor([[0.1, 0.3, 0.05, 0.15, 0.16, 0.24], [0.5, 0.0, 0.5, 0.0, 0.0, 0.0]])
    ids = torch.tensor([1, 2, 3, 4])

    found = at_median(probs.log(), ids).exp()

    torch.testing.assert_close(found[0], torch.tensor([0.1, 0, 0.66, 0, 0, 0.24]))
    torch.testing.assert_close(found[1], probs[1])


def test_amounts_are_read_in_their_order_not_in_that_of_the_ids():
    probs = torch.tensor([0.3, 0.2, 0.5 - 1e-3, 1e-3])

    assert at_median(probs.log(), torch.tensor([1, 0, 2])).argmax() == 0
    assert at_median(probs.log(), torch.tensor([0, 1, 2])).argmax() == 1


def test_without_amounts_nothing_changes():
    logits = torch.randn(2, 3, 5)

    assert at_median(logits, torch.tensor([], dtype=torch.int64)) is logits


@pytest.mark.parametrize("amounts", ["words", "median"])
def test_a_text_says_an_amount_at_the_median_of_its_logits(amounts):
    model, marks = tiny_model("gelu", scale=6.0), replace(MARKS, amounts=NUMBERS)
    given = tiny_batch(["rgb@16"], 6)
    batch = given.with_({"caption": empty_sequence(6, 3, marks)})
    # Only numbers can be said, so what is said shows how they are chosen.
    with torch.no_grad():
        model.target("caption").to_logits.weight[: NUMBERS[0]] *= 0
        model.target("caption").to_logits.weight[NUMBERS[-1] + 1 :] *= 0
    with eager():
        _, logits = uncached_text(model, batch, "caption", [Pass(1.0)], marks, stop=False)
    first = logits[:, 0, list(NUMBERS)]
    median = (first.softmax(dim=-1).cumsum(dim=-1) < 0.5).sum(dim=-1) + NUMBERS[0]

    target = Target("caption", temperature=0, amounts=amounts)
    (result,) = Sampler(model, marks=marks).iterate(batch, Plan.of(target))

    likeliest = logits[:, 0].argmax(dim=-1)
    assert not torch.equal(likeliest, median)
    assert torch.equal(result.ids[:, 0], median if amounts == "median" else likeliest)
    sure = logits[:, 0].softmax(dim=-1).gather(1, result.ids[:, :1])
    torch.testing.assert_close(result.confidence[:, :1], sure, rtol=1e-4, atol=1e-5)
