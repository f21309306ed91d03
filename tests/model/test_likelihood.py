from __future__ import annotations

import itertools

import pytest
import torch
from tiny import MARKS, tiny_batch, tiny_config, tiny_model

from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.modalities.spec import Modality

PAIR = Modality(
    name="pair", kind="grid", vocab_size=5, image_size=8, patch_size=8, grid=(1, 2), max_tokens=2
)


def pair_model():
    config = tiny_config()
    return tiny_model(inputs=(*config.inputs, PAIR), outputs=(*config.outputs, PAIR))


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_the_chain_rule_sums_to_one_over_all_completions(order):
    model = pair_model()
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5))

    scores = model.score("pair", every, tiny_batch(["rgb@16"], 3), method="chain", order=order)

    torch.testing.assert_close(scores.total.exp().sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)


def test_one_pass_sums_to_one_as_well():
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5))

    scores = pair_model().score("pair", every, tiny_batch(["rgb@16"], 3))

    torch.testing.assert_close(scores.total.exp().sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)


def test_a_sequence_sums_to_one_over_all_completions():
    every = torch.cartesian_prod(torch.arange(40), torch.arange(40))
    start = torch.full((len(every), 1), MARKS.sentinel(1))

    scores = tiny_model().score(
        "caption", torch.cat([start, every], dim=1), tiny_batch(["rgb@16"], 2)
    )

    torch.testing.assert_close(scores.total.exp().sum(dim=1), torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "one-pass", "chains"])
def test_a_method_that_is_none_is_refused(method):
    with pytest.raises(ConfigError, match=r"one of one_pass, chain"):
        tiny_model().score(
            "tok_global", torch.zeros(1, 4).long(), tiny_batch(["t5"]), method=method
        )


@pytest.mark.parametrize("method", ["one_pass", "chain"])
def test_candidates_are_scored_as_if_alone(method):
    model = tiny_model()
    candidates = torch.randint(0, 7, (5, 4), generator=torch.Generator().manual_seed(1))
    given = tiny_batch(["rgb@16", "caption"], 3)

    together = model.score("tok_global", candidates, given, method=method, chunk=2).total
    alone = torch.cat(
        [
            model.score(
                "tok_global", candidates[[k]], given.rows(slice(b, b + 1)), method=method
            ).total
            for b in range(3)
            for k in range(5)
        ]
    ).view(3, 5)

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_padding_of_a_sequence_does_not_count():
    model, given = tiny_model(), tiny_batch(["rgb@16"])
    ids = torch.tensor([[5, 20, 21, 6]])
    padded = torch.tensor([[5, 20, 21, 6, 0, 0]])
    valid = torch.tensor([[True, True, True, True, False, False]])

    short = model.score("caption", ids, given)
    long = model.score("caption", padded, given, valid=valid)

    torch.testing.assert_close(short.total, long.total)
    assert short.count.tolist() == long.count.tolist() == [3]
    torch.testing.assert_close(short.mean, short.total / 3)


def test_what_is_not_a_target_is_refused():
    with pytest.raises(FourMError, match="does not predict 'rgb@16'"):
        tiny_model().score("rgb@16", torch.zeros(1, 16), tiny_batch(["caption"]))


def test_candidates_of_another_length_are_refused():
    with pytest.raises(ShapeError, match=r"int64\[K, 4\]"):
        tiny_model().score("tok_global", torch.zeros(2, 3, dtype=torch.int64), tiny_batch(["t5"]))
