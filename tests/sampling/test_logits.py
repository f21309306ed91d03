from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.sampling.logits import draw, draw_original, draw_rows, filter_logits, item_uniforms
from fourm_lite.sampling.schedule import num_kept, share_kept


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_logits(*shape, seed=0, scale=3.0):
    return torch.randn(shape, generator=seeded(seed)) * scale


def kept(logits):
    return logits > -math.inf


@pytest.mark.parametrize("top_k", [None, 0, 0.0, 1.0, 50, 5000])
@pytest.mark.parametrize("top_p", [None, 0, 0.0, 1, 1.0])
def test_cutoffs_that_keep_everything_change_nothing(top_k, top_p):
    logits = random_logits(3, 50)

    assert torch.equal(filter_logits(logits, top_k, top_p), logits)


@pytest.mark.parametrize("top_k", [1, 7, np.int64(7), 0.25, np.float32(0.25), 1e-9])
def test_top_k_keeps_the_likeliest(top_k):
    logits = random_logits(4, 40)

    out = filter_logits(logits, top_k)

    n = num_kept(top_k, 40)
    assert (kept(out).sum(-1) == n).all()
    assert torch.equal(out.topk(n).values, logits.topk(n).values)


def test_top_k_keeps_ties_with_the_last():
    out = filter_logits(torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0]), 2)

    assert kept(out).tolist() == [True, True, True, True, False]


def test_top_p_keeps_the_first_id_that_crosses_the_share():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    assert kept(filter_logits(logits, top_p=0.4)).tolist() == [True, False, False, False]
    assert kept(filter_logits(logits, top_p=0.6)).tolist() == [True, True, False, False]
    assert kept(filter_logits(logits, top_p=0.9)).tolist() == [True, True, True, False]


def test_top_p_keeps_the_lowest_of_tied_ids():
    assert kept(filter_logits(torch.zeros(10), top_p=0.45)).tolist() == [True] * 5 + [False] * 5


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 100, 0.5])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.99])
def test_the_fast_top_p_keeps_what_a_full_sort_keeps(scale, top_k, top_p):
    logits = random_logits(5, 6000, scale=scale, seed=int(scale * 100))

    fast = filter_logits(logits, top_k, top_p)

    full = filter_logits(logits, top_k, top_p, original=True)
    different = kept(fast) != kept(full)
    # float32 sums in another order: only an id on the very edge of the share may differ
    assert (different.sum(-1) <= 6000 * 1e-4).all()
    edge = torch.where(different, logits.softmax(-1), 0.0).sum()
    assert edge < 1e-4


def test_rows_of_any_flatness_are_cut_in_one_call():
    logits = torch.cat([random_logits(1, 5000, scale=s) for s in (8.0, 0.0, 2.0, 0.1)])

    together = filter_logits(logits, top_p=0.9)

    alone = torch.cat([filter_logits(row[None], top_p=0.9) for row in logits])
    assert torch.equal(together, alone)
    assert kept(together)[1].sum() == pytest.approx(4500, abs=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_filtering_keeps_the_dtype_and_the_share(dtype):
    logits = random_logits(2, 3, 300).to(dtype)

    out = filter_logits(logits, top_p=0.7)

    assert out.dtype == dtype
    covered = torch.where(kept(out), logits.double().softmax(-1), 0.0).sum(-1)
    assert (covered > 0.7 - 1e-3).all()


@pytest.mark.parametrize("top_k", [-1, 1.5, 50.0, math.nan, True, "5"])
def test_a_top_k_that_means_nothing_is_refused(top_k):
    with pytest.raises(ConfigError, match="top_k"):
        filter_logits(random_logits(2, 40), top_k)


@pytest.mark.parametrize("top_p", [-0.1, 1.1, math.nan, True, "0.5"])
def test_a_top_p_that_means_nothing_is_refused(top_p):
    with pytest.raises(ConfigError, match="top_p"):
        share_kept(top_p)


def test_a_single_row_needs_no_batch_dimension():
    row = random_logits(50)

    ids, confidence = draw(row, top_p=0.9, generator=seeded())

    assert ids.shape == confidence.shape == ()
    assert torch.equal(ids, draw(row[None], top_p=0.9, generator=seeded()).ids[0])


def test_no_rows_give_no_ids():
    empty = torch.zeros(0, 4, 100)

    assert draw(empty, top_p=0.5, generator=seeded()).ids.shape == (0, 4)
    assert draw(empty, temperature=0).ids.shape == (0, 4)


def test_temperature_zero_takes_the_likeliest_id_with_its_true_probability():
    logits = random_logits(3, 5, 70)

    ids, confidence = draw(logits, temperature=0.0, top_k=3)

    assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(confidence, logits.softmax(-1).amax(-1))


def test_the_temperature_at_which_schedules_end_is_as_good_as_zero():
    logits = random_logits(200, 70)

    ids, confidence = draw(logits, temperature=1e-9, generator=seeded())

    assert torch.equal(ids, logits.argmax(-1))
    assert torch.equal(confidence, torch.ones(200))


@pytest.mark.parametrize("vocab_size", [7, 96, 384])
def test_draws_follow_the_distribution(vocab_size):
    row = random_logits(vocab_size, scale=1.5)

    ids = draw(row.expand(40000, -1), temperature=0.8, top_k=20, generator=seeded(1)).ids

    probs = (filter_logits(row, 20) / 0.8).softmax(-1)
    shares = torch.bincount(ids, minlength=vocab_size) / 40000
    assert (shares - probs).abs().max() < 0.01
    assert (shares[probs == 0] == 0).all()


def test_the_confidence_is_the_probability_after_filtering_and_temperature():
    logits = random_logits(6, 50)

    ids, confidence = draw(logits, temperature=0.5, top_k=5, top_p=0.9, generator=seeded())

    probs = (filter_logits(logits, 5, 0.9) / 0.5).softmax(-1)
    torch.testing.assert_close(confidence, probs.gather(-1, ids[:, None])[:, 0])


@pytest.mark.parametrize("vocab_size", [1, 5, 16, 128, 1000])
@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_the_outermost_random_numbers_still_hit_ids_that_can_be_drawn(vocab_size, number):
    logits = random_logits(50, vocab_size, scale=10.0)
    uniforms = torch.full((50,), number, dtype=torch.float64)

    ids, confidence = draw(logits, top_k=3, uniforms=uniforms)

    assert (confidence > 0).all()
    assert ((ids >= 0) & (ids < vocab_size)).all()


def test_equal_seeds_give_equal_ids_and_the_global_generator_is_left_alone():
    logits = random_logits(20, 300)
    state = torch.random.get_rng_state()

    first, second = (draw(logits, generator=seeded(4)).ids for _ in range(2))

    assert torch.equal(first, second)
    assert not torch.equal(first, draw(logits, generator=seeded(5)).ids)
    assert torch.equal(state, torch.random.get_rng_state())


def test_sampling_without_a_generator_is_refused():
    with pytest.raises(ConfigError, match=r"torch\.Generator"):
        draw(random_logits(2, 5))


@pytest.mark.parametrize("temperature", [-1.0, math.nan])
def test_a_temperature_that_is_no_number_from_zero_up_is_refused(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        draw(random_logits(2, 5), temperature=temperature)


def test_uniforms_must_be_one_a_row():
    with pytest.raises(ShapeError, match=r"\[2, 5\]"):
        draw(random_logits(2, 5), uniforms=torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1], [2, 1]])
def test_an_item_draws_the_same_in_any_batch_and_at_any_place(order):
    logits = random_logits(3, 12, 200)
    valid = torch.tensor([[True] * 12, [True, False] * 6, [False] * 4 + [True] * 8])
    whole = draw_rows(logits, [seeded(i) for i in range(3)], top_p=0.9, valid=valid)

    part = draw_rows(logits[order], [seeded(i) for i in order], top_p=0.9, valid=valid[order])

    assert torch.equal(part.ids[valid[order]], whole.ids[order][valid[order]])


def test_padding_rows_do_not_move_what_an_item_draws():
    logits = random_logits(1, 8, 100)
    padded = torch.cat([random_logits(1, 3, 100, seed=9), logits], dim=1)
    valid = torch.tensor([[False] * 3 + [True] * 8])

    ids = draw_rows(padded, [seeded(7)], valid=valid).ids

    assert torch.equal(ids[:, 3:], draw_rows(logits, [seeded(7)]).ids)


def test_a_generator_goes_on_from_step_to_step():
    logits = random_logits(1, 30, 100)
    generator = seeded(3)

    first = draw_rows(logits, [generator]).ids
    second = draw_rows(logits, [generator]).ids

    assert not torch.equal(first, second)


def test_item_uniforms_need_one_generator_an_item():
    with pytest.raises(ShapeError, match="one generator an item"):
        item_uniforms([seeded()], torch.ones(2, 3, dtype=torch.bool))


def test_original_draws_are_those_of_a_freshly_seeded_multinomial():
    logits = random_logits(9, 60)

    ids, confidence = draw_original(logits, temperature=0.7, top_k=0.0, top_p=0.0, seed=11)

    probs = (logits / 0.7).softmax(-1)
    expected = torch.multinomial(probs, 1, generator=seeded(11))
    assert torch.equal(ids, expected[:, 0])
    assert torch.equal(confidence, probs.gather(-1, expected)[:, 0])


def test_original_draws_go_on_from_a_generator_that_is_passed():
    logits = random_logits(9, 60)
    options = {"temperature": 1.0, "top_k": None, "top_p": None}

    whole = seeded(2)
    twice = [draw_original(logits, seed=whole, **options).ids for _ in range(2)]

    assert torch.equal(twice[0], draw_original(logits, seed=2, **options).ids)
    assert not torch.equal(*twice)


def test_the_original_is_sure_of_everything_at_temperature_zero():
    logits = random_logits(9, 60)

    ids, confidence = draw_original(logits, temperature=0.0, top_k=5, top_p=0.5, seed=0)

    assert torch.equal(ids, logits.argmax(-1))
    assert torch.equal(confidence, torch.ones(9))
