from __future__ import annotations

import math

import pytest

from fourm_lite.errors import ConfigError
from fourm_lite.sampling.schedule import (
    Constant,
    Linear,
    OneOverX,
    as_temperature,
    parse_temperature,
    remaining_counts,
    token_counts,
)

TOTALS = (0, 1, 2, 4, 5, 16, 196, 256, 784)
STEPS = (1, 2, 3, 8, 14, 15, 23, 24, 38, 39, 50, 300)
RULES = [Constant(0.3), Linear(6.0), OneOverX(0.5, 0.5, 6.0), OneOverX(0.0, 1.0, 0.0)]


@pytest.mark.parametrize("order", ["cosine", "linear"])
@pytest.mark.parametrize("total", TOTALS)
def test_every_step_reveals_something_and_all_reveal_the_total(order, total):
    for steps in STEPS:
        counts = token_counts(total, steps, order)

        assert sum(counts) == total
        assert all(count > 0 for count in counts)
        assert len(counts) <= steps


@pytest.mark.parametrize("total", TOTALS)
def test_ours_is_the_original_without_its_zeros_wherever_that_is_never_negative(total):
    for steps in STEPS:
        theirs = token_counts(total, steps, original=True)

        assert sum(theirs) == total
        assert len(theirs) == steps
        if min(theirs) >= 0:
            assert token_counts(total, steps) == [count for count in theirs if count]


@pytest.mark.parametrize("steps", [8, 14, 15, 23])
def test_the_original_cosine_schedule_of_16_tokens_ends_below_zero_and_ours_does_not(steps):
    assert token_counts(16, steps, original=True)[-1] < 0
    assert min(token_counts(16, steps)) > 0


def test_a_linear_schedule_is_as_even_as_it_can_be_and_never_rises():
    counts = token_counts(196, 25, "linear")

    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("total", "steps", "order"), [(-1, 2, "cosine"), (5, 0, "cosine"), (5, 2, "cosin")]
)
def test_an_impossible_schedule_is_refused(total, steps, order):
    with pytest.raises(ConfigError):
        token_counts(total, steps, order)


def test_an_unknown_order_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        token_counts(5, 2, "cosin")


@pytest.mark.parametrize("done", [0, 1, 7, 8, 100, 196, 200])
def test_what_remains_of_a_schedule_reveals_exactly_the_missing_tokens(done):
    counts = token_counts(196, 8)

    rest = remaining_counts(counts, done)

    assert sum(rest) == max(196 - done, 0)
    assert rest[1:] == (counts[-len(rest) + 1 :] if len(rest) > 1 else [])


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("total", [1, 2, 16, 196])
def test_every_step_has_one_finite_temperature(rule, total):
    for steps in (1, 3, 30):
        counts = token_counts(total, steps)

        temperatures = rule.at(counts)

        assert len(temperatures) == len(counts)
        assert all(math.isfinite(t) and t >= 0 for t in temperatures)


@pytest.mark.parametrize("rule", [Linear(3.0), OneOverX(0.5, 0.5, 3.0)], ids=str)
def test_a_falling_temperature_falls(rule):
    temperatures = rule.at(token_counts(196, 12))

    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[0] > temperatures[-1]


def test_one_over_x_ends_at_its_minimum_even_for_one_token():
    assert OneOverX(0.5, 0.5, 6.0).at([1]) == [0.5]
    assert OneOverX(0.5, 0.5, 6.0).at(token_counts(196, 8))[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_text_of_a_temperature_reads_back(rule):
    assert parse_temperature(str(rule)) == rule


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, Constant(2.0)),
        (0.7, Constant(0.7)),
        ("1e-3", Constant(0.001)),
        ("constant", Constant(1.0)),
        ("linear", Linear(1.0)),
        ("onex:0.2", OneOverX(0.2, 0.5, 1.0)),
        ("onex:0.5:1@6", OneOverX(0.5, 1.0, 6.0)),
        (Linear(2.0), Linear(2.0)),
    ],
)
def test_numbers_texts_and_rules_are_all_temperatures(value, expected):
    assert as_temperature(value) == expected


@pytest.mark.parametrize(
    "value",
    ["hot", "onex:a:b", "onex:1:2:3", "linear:3", "linear@", "-1", "nan", "inf", "", True, None],
)
def test_what_is_no_temperature_is_refused(value):
    with pytest.raises(ConfigError, match="temperature"):
        as_temperature(value)


@pytest.mark.parametrize("numbers", [(-0.1, 0.5), (0.5, 0.0), (0.5, math.nan), (0.5, math.inf)])
def test_a_curve_that_does_not_fall_is_refused(numbers):
    with pytest.raises(ConfigError, match="onex"):
        OneOverX(*numbers)


def test_a_misspelt_rule_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'linear'"):
        parse_temperature("liner@3")
