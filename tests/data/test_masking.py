import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_lite.data.masking import (
    Budget,
    Masker,
    Mixture,
    closed_chunks,
    draw_mixture,
    give,
    grid_mask,
    mask_features,
    mask_sequence,
    stack_masked,
    token_budgets,
    want,
)
from fourm_lite.data.shards import IMAGENET_MEAN, IMAGENET_STD, normalized
from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.tokenization.vq.randomness import TorchSource
from fourm_lite.tokenization.words.spans import Marks, _input_length, mask_chunk_spans, merge_spans

MARKS = Marks(pad=0, eos=3, sentinels=tuple(range(4, 84)))
GRID = Modality(name="tok@64", kind="grid", vocab_size=50, grid=(4, 4), max_tokens=16)
TEXT = Modality(name="caption", kind="sequence", vocab_size=999, max_tokens=20)
PHOTO = Modality(
    name="rgb@64", kind="pixels", channels=3, patch_size=16, grid=(4, 4), max_tokens=16,
    directions=IN,
)  # fmt: skip
T5 = Modality(name="t5", kind="features", channels=5, max_tokens=8, directions=IN)
MODALITIES = {m.name: m for m in (GRID, TEXT, PHOTO, T5)}
SAMPLE = {
    "tok@64": torch.arange(16),
    "caption": list(range(100, 112)),
    "rgb@64": torch.rand(3, 64, 64),
    "t5": torch.rand(6, 5) + 1,
}
EVEN = Mixture(inputs=dict.fromkeys(MODALITIES, 1.0), targets={"tok@64": 1.0, "caption": 1.0})
SEEDS = st.integers(0, 2**31)


def masker(*mixtures: Mixture, inputs: int = 20) -> Masker:
    return Masker(
        modalities=MODALITIES,
        mixtures=mixtures,
        inputs=Budget(inputs, inputs),
        targets=Budget(16, 16),
        marks=MARKS,
    )


# --- budgets


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.05, 1.0, 8.0]), st.integers(0, 30)), min_size=1),
    st.integers(0, 100),
    SEEDS,
)
def test_budgets_stay_within_their_total_and_their_limits(entries, total, seed):
    alphas, limits = [a for a, _ in entries], [n for _, n in entries]

    counts = token_budgets(alphas, limits, total, TorchSource.seeded(seed))

    assert sum(counts) <= total
    assert all(0 <= c <= n for c, n in zip(counts, limits, strict=True))
    assert all(c == 0 for c, a in zip(counts, alphas, strict=True) if a == 0)


@given(st.integers(0, 200), SEEDS)
def test_without_limits_every_token_is_dealt_out(total, seed):
    counts = token_budgets([1.0, 0.1, 0.0, 5.0], [1000] * 4, total, TorchSource.seeded(seed))

    assert sum(counts) == total


def test_large_weights_share_evenly():
    source = TorchSource.seeded(0)

    counts = token_budgets([1e6, 1e6], [999, 999], 100, source)

    assert abs(counts[0] - 50) <= 2


def test_mixtures_come_as_often_as_their_weights_say():
    source = TorchSource.seeded(0)
    mixtures = [Mixture(inputs={}, targets={}, weight=w) for w in (1.0, 0.0, 3.0)]

    drawn = [mixtures.index(draw_mixture(mixtures, source)) for _ in range(2000)]

    counts = [sum(m is mixtures[k] for m in (mixtures[d] for d in drawn)) for k in (0, 1, 2)]
    assert counts[1] == 0
    assert 0.2 < counts[0] / 2000 < 0.3


def test_bad_budgets_are_errors():
    with pytest.raises(ConfigError, match="low <= high"):
        Budget(5, 4)
    with pytest.raises(ConfigError, match="finite"):
        Mixture(inputs={"a": -1.0}, targets={})
    with pytest.raises(ConfigError, match="positive weight"):
        draw_mixture([], TorchSource.seeded(0))


@given(st.integers(0, 50), st.integers(0, 50), SEEDS)
def test_a_drawn_budget_lies_in_its_range(low, more, seed):
    assert low <= Budget(low, low + more).draw(TorchSource.seeded(seed)) <= low + more


# --- one mask a kind


@given(st.integers(1, 60), st.integers(0, 70), st.integers(0, 70), SEEDS)
def test_a_grid_gives_and_asks_for_different_cells(n, given_, wanted, seed):
    inputs, targets = grid_mask(n, given_, wanted, TorchSource.seeded(seed))

    assert not (inputs & targets).any()
    assert inputs.sum() == min(given_, n)
    assert targets.sum() == min(wanted, n - int(inputs.sum()))


def test_a_grid_without_target_budget_asks_for_all_the_rest():
    inputs, targets = grid_mask(30, 10, None, TorchSource.seeded(0))

    assert torch.equal(targets, ~inputs)


def test_every_cell_is_given_about_equally_often():
    source = TorchSource.seeded(0)

    counts = sum(grid_mask(8, 2, 2, source)[0].int() for _ in range(2000))

    assert ((counts - 500).abs() < 100).all()


@given(st.lists(st.integers(100, 900), max_size=40), SEEDS)
@settings(max_examples=60)
def test_an_uncut_masked_text_can_be_merged_back(ids, seed):
    masked = mask_sequence(
        ids, max_tokens=30, input_budget=30, target_budget=None, marks=MARKS,
        source=TorchSource.seeded(seed),
    )  # fmt: skip

    inputs = masked.value[masked.inputs].tolist()
    targets = masked.value[masked.targets].tolist()

    assert merge_spans(inputs, targets, set(MARKS.sentinels)) == [*ids, MARKS.eos][:30]


@given(st.integers(0, 30), st.integers(0, 30), SEEDS)
@settings(max_examples=60)
def test_a_masked_text_keeps_to_its_budgets(given_, wanted, seed):
    masked = mask_sequence(
        list(range(100, 130)), max_tokens=20, input_budget=given_, target_budget=wanted,
        marks=MARKS, source=TorchSource.seeded(seed),
    )  # fmt: skip

    assert len(masked.value) == 42
    assert masked.inputs.sum() <= min(given_, 20)
    assert masked.targets.sum() <= wanted
    assert torch.equal(masked.groups, masked.targets.int())


def test_chunks_are_never_torn_apart():
    pairs = [[200 + k, 300 + k] for k in range(8)]
    for seed in range(20):
        masked = mask_sequence(
            pairs, max_tokens=30, input_budget=10, target_budget=None, marks=MARKS,
            source=TorchSource.seeded(seed),
        )  # fmt: skip
        shown = [i for i in masked.value[masked.inputs].tolist() if i >= 200]

        assert all(shown[k] + 100 == shown[k + 1] for k in range(0, len(shown), 2))


def test_the_end_of_text_is_cut_like_any_token():
    assert closed_chunks([7, 8], max_tokens=3, marks=MARKS) == [[7], [8], [MARKS.eos]]
    assert closed_chunks([7, 8], max_tokens=2, marks=MARKS) == [[7], [8]]
    assert closed_chunks([[7, 8], [9, 9]], max_tokens=3, marks=MARKS) == [[7, 8]]


@given(st.integers(0, 9), SEEDS)
def test_features_keep_their_order_and_hide_runs_behind_one_zero_row(budget, seed):
    value = torch.arange(1, 7).float()[:, None].expand(6, 5)

    masked = mask_features(
        value, max_tokens=8, input_budget=budget, source=TorchSource.seeded(seed)
    )

    rows = masked.value[masked.inputs][:, 0]
    assert masked.value.shape == (8, 5)
    assert len(rows) <= budget
    assert not masked.targets.any()
    assert rows[rows > 0].tolist() == sorted(rows[rows > 0].tolist())
    assert not ((rows[1:] == 0) & (rows[:-1] == 0)).any()


# --- transfers


def test_a_transfer_gives_all_of_one_and_asks_for_all_of_the_other():
    caption = give(SAMPLE["caption"], TEXT, MARKS)
    photo = give(SAMPLE["rgb@64"], PHOTO, MARKS)
    tokens = want(SAMPLE["tok@64"], GRID, MARKS)

    assert caption.value[caption.inputs].tolist() == [*SAMPLE["caption"], MARKS.eos]
    assert photo.inputs.all()
    assert photo.inputs.shape == (16,)
    assert tokens.targets.all()
    assert not tokens.inputs.any()
    assert torch.equal(tokens.value, SAMPLE["tok@64"])


def test_what_no_decoder_predicts_cannot_be_wanted():
    with pytest.raises(ConfigError, match="no target"):
        want(SAMPLE["rgb@64"], PHOTO, MARKS)


def test_a_map_of_another_resolution_is_an_error():
    with pytest.raises(ShapeError, match="tok@448"):
        give(torch.arange(9), GRID, MARKS)


# --- whole samples


@given(SEEDS)
@settings(max_examples=40)
def test_a_masked_sample_gives_and_asks_for_no_more_than_its_budgets(seed):
    masked = masker(EVEN)(SAMPLE, TorchSource.seeded(seed))

    assert masked.keys() == SAMPLE.keys()
    assert sum(int(m.inputs.sum()) for m in masked.values()) <= 20
    assert sum(int(m.targets.sum()) for m in masked.values()) <= 16
    assert not any(masked[name].targets.any() for name in ("rgb@64", "t5"))


def test_the_same_seed_masks_the_same():
    first, second = (masker(EVEN)(SAMPLE, TorchSource.seeded(7)) for _ in range(2))

    for name in SAMPLE:
        assert torch.equal(first[name].inputs, second[name].inputs)
        assert torch.equal(first[name].targets, second[name].targets)


def test_a_mixture_can_ask_for_everything_of_one_modality():
    mixture = Mixture(inputs={"caption": 1.0}, targets={"tok@64": 1.0}, keep={"caption": "all"})

    masked = masker(mixture)(SAMPLE, TorchSource.seeded(0))

    assert masked["tok@64"].targets.all()
    assert masked["tok@64"].groups.tolist() == [16, *[0] * 15]
    assert masked["caption"].inputs.sum() == 13
    assert not masked["rgb@64"].inputs.any()


def test_mixtures_that_do_not_fit_the_model_are_errors():
    with pytest.raises(ConfigError, match="Did you mean 'caption'"):
        masker(Mixture(inputs={"captoin": 1.0}, targets={}))
    with pytest.raises(ConfigError, match="no target"):
        masker(Mixture(inputs={}, targets={"rgb@64": 1.0}))


def test_a_batch_holds_its_samples_and_leaves_absent_ones_empty():
    draw = masker(EVEN, inputs=4)
    samples = [draw(SAMPLE, TorchSource.seeded(k)) for k in range(2)]
    samples.append(draw({"tok@64": SAMPLE["tok@64"]}, TorchSource.seeded(2)))

    batch = stack_masked(samples)

    assert batch.size == 3
    assert torch.equal(batch["caption"].value[1], samples[1]["caption"].value)
    assert not batch["caption"].inputs[2].any()
    assert not batch["caption"].targets[2].any()
    assert batch["tok@64"].targets[2].any()


def test_an_empty_batch_is_an_error():
    with pytest.raises(ShapeError, match="at least one sample"):
        stack_masked([])


def test_one_share_is_what_numpy_draws_for_one():
    for alpha in (0.05, 0.1, 1.0, 3.0):
        ours = TorchSource.seeded(3)
        seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3)))
        numpy = np.random.default_rng(seed)
        for _ in range(50):
            assert ours.dirichlet([0.0, alpha]) == [0.0, float(numpy.dirichlet([alpha])[0])]
        assert ours.uniform() == numpy.random()


def test_the_length_of_an_input_is_known_before_it_is_made():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(9))
        chunks = [[20] * int(k) for k in rng.integers(1, 4, n)]
        keep = (rng.random(n) < 0.5).tolist()

        made = mask_chunk_spans(chunks, keep, MARKS)

        assert _input_length([len(c) for c in chunks], keep) == len(made.inputs)


def test_pixels_from_a_table_are_the_formulas_own():
    pixels = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)

    expected = (torch.from_numpy(pixels).float() / 255 - mean) / std

    assert torch.equal(normalized(pixels), expected.permute(2, 0, 1))
