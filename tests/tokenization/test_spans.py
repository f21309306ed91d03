import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.tokenization.vq.randomness import ThreeSources, TorchSource
from fourm_lite.tokenization.words.spans import (
    Marks,
    Spans,
    custom_text,
    cut_targets,
    draw_spans,
    empty_text,
    given_text,
    lay_out_spans,
    mask_chunk_spans,
    mask_spans,
    merge_spans,
    split_spans,
    truncate_chunks,
    wanted_text,
)

MARKS = Marks(pad=0, eos=3, sentinels=tuple(range(4, 104)))
SENTINELS = set(MARKS.sentinels)
WORDS = st.integers(200, 999)
CHUNKS = st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=30)
SOURCES = [TorchSource.seeded, ThreeSources.seeded]


@given(st.lists(st.tuples(WORDS, st.booleans()), max_size=60))
def test_merging_undoes_any_masking(pairs):
    ids, keep = [i for i, _ in pairs], [k for _, k in pairs]

    spans = mask_spans(ids, keep, MARKS)

    assert merge_spans(spans.inputs, spans.targets, SENTINELS) == ids


@given(CHUNKS, st.integers(0, 2**31))
def test_merging_undoes_masking_of_chunks(chunks, seed):
    keep = (TorchSource.seeded(seed).uniforms(len(chunks)) < 0.5).tolist()

    spans = mask_chunk_spans(chunks, keep, MARKS)

    assert merge_spans(spans.inputs, spans.targets, SENTINELS) == [i for c in chunks for i in c]


@given(st.lists(st.tuples(WORDS, st.booleans()), max_size=60))
def test_sentinels_count_up_from_one_and_close_the_target(pairs):
    spans = mask_spans([i for i, _ in pairs], [k for _, k in pairs], MARKS)

    opened = [i for i in spans.inputs if i in SENTINELS]
    told = [i for i in spans.targets if i in SENTINELS]

    assert opened == [MARKS.sentinel(k + 1) for k in range(len(opened))]
    assert told == [MARKS.sentinel(k + 1) for k in range(len(opened) + 1)]
    assert spans.targets[0] == MARKS.sentinel(1)
    assert not opened or spans.targets[-1] == told[-1]


@given(
    CHUNKS, st.integers(0, 2**31), st.integers(0, 40), st.sampled_from(["random", "all", "binary"])
)
@settings(max_examples=60)
def test_a_drawn_input_never_exceeds_its_budget(chunks, seed, budget, keep):
    source = TorchSource.seeded(seed)

    spans = draw_spans(chunks, budget=budget, marks=MARKS, source=source, keep=keep)

    assert len(spans.inputs) <= budget
    if budget:
        merged = merge_spans(spans.inputs, spans.targets, SENTINELS)
        assert merged == [i for c in chunks for i in c]


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_seed_draws_the_same_spans(source):
    chunks = [[i] for i in range(200, 230)]

    first, second = (draw_spans(chunks, budget=12, marks=MARKS, source=source(5)) for _ in range(2))

    assert first == second
    assert first != draw_spans(chunks, budget=12, marks=MARKS, source=source(6))


@given(CHUNKS, st.integers(0, 2**31), st.integers(0, 40))
def test_a_cut_target_starts_at_a_sentinel_and_fits(chunks, seed, budget):
    source = TorchSource.seeded(seed)
    targets = draw_spans(chunks, budget=20, marks=MARKS, source=source).targets

    cut = cut_targets(targets, budget, marks=MARKS, source=source)

    assert len(cut) <= budget
    assert len(targets) > budget or cut == targets
    if cut:
        assert cut[0] in SENTINELS
        assert "".join(map(chr, cut)) in "".join(map(chr, targets))


def test_no_budget_cuts_nothing():
    targets = tuple(range(300))

    assert cut_targets(targets, None, marks=MARKS, source=TorchSource.seeded(0)) == targets


@given(st.lists(st.integers(0, 999), max_size=40), st.lists(st.integers(0, 999), max_size=40))
def test_merging_survives_any_generated_ids(inputs, targets):
    merged = merge_spans(inputs, targets, SENTINELS)

    rest = iter(merged)
    assert not SENTINELS & set(merged)
    assert all(i in rest for i in inputs if i not in SENTINELS)  # in the same order
    assert set(merged) <= set(inputs) | set(targets)


def test_a_repeated_sentinel_collects_both_runs():
    assert split_spans([9, 5, 1000, 6, 2000, 5, 3000], {5, 6}) == {
        None: [9],
        5: [1000, 3000],
        6: [2000],
    }


def test_chunks_are_dropped_whole():
    assert truncate_chunks([[1, 2], [3, 4], [5]], 3) == [[1, 2]]


def test_too_many_runs_for_the_vocabulary_are_an_error():
    few = Marks(pad=0, eos=3, sentinels=(4, 5, 6))

    with pytest.raises(ConfigError, match=r"sentinel \[S_3\]"):
        mask_spans([9, 9, 9, 9, 9], [False, True, False, True, False], few)


@given(CHUNKS, st.integers(0, 2**31), st.integers(0, 100))
@settings(max_examples=60)
def test_input_and_target_never_overlap_in_their_array(chunks, seed, budget):
    chunks = truncate_chunks(chunks, 60)
    spans = draw_spans(chunks, budget=min(budget, 60), marks=MARKS, source=TorchSource.seeded(seed))

    laid = lay_out_spans(spans, max_tokens=60, input_budget=budget, marks=MARKS)

    assert len(laid.value) == 122
    assert not (laid.inputs & laid.targets).any()
    assert laid.value[laid.inputs].tolist() == list(spans.inputs)
    assert laid.value[laid.targets].tolist() == list(spans.targets)
    assert (laid.value[~laid.inputs & ~laid.targets] == MARKS.pad).all()


def test_spans_beyond_the_array_are_an_error():
    with pytest.raises(ShapeError, match="do not fit"):
        lay_out_spans(Spans((9,) * 8, ()), max_tokens=4, input_budget=None, marks=MARKS)


@pytest.mark.parametrize("length", [0, 2, 9])
def test_an_empty_text_gives_one_sentinel_and_asks_for_the_rest(length):
    empty = empty_text(length, MARKS)

    assert empty.inputs.nonzero().flatten().tolist() == [0]
    assert torch.equal(empty.targets, ~empty.inputs)
    assert empty.value[0] == MARKS.sentinel(1)
    assert empty.value[-1] == MARKS.sentinel(2)


def test_a_custom_text_is_read_whole():
    laid = custom_text([300, 5, 301], 10, MARKS)

    assert laid.value[laid.inputs].tolist() == [300, 5, 301]
    assert laid.value[laid.targets].tolist() == [5, *[0] * 8, 3]


def test_given_and_wanted_text_hold_the_same_words():
    chunks = [[300, 301], [302]]

    gives = given_text(chunks, max_tokens=8, marks=MARKS)
    wants = wanted_text(chunks, max_tokens=8, marks=MARKS)

    assert gives.value[gives.inputs].tolist() == [300, 301, 302]
    assert not wants.inputs.any()
    assert wants.value[wants.targets].tolist() == [5, 300, 301, 302, 6]


@pytest.mark.parametrize("source", SOURCES)
@given(alphas=st.lists(st.sampled_from([0.0, 0.01, 0.5, 10.0]), min_size=1, max_size=6))
def test_shares_add_up_to_one_and_zero_weights_get_nothing(source, alphas):
    shares = source(0).dirichlet(alphas)

    assert all(s == 0 for s, a in zip(shares, alphas, strict=True) if a == 0)
    assert sum(shares) == pytest.approx(1.0 if any(alphas) else 0.0)


@pytest.mark.parametrize("source", SOURCES)
def test_shuffling_keeps_all_items_and_its_argument(source):
    items = list(range(20))

    shuffled = source(3).shuffled(items)

    assert sorted(shuffled) == items == list(range(20))
    assert shuffled != items
