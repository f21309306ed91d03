from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_lite.model.packing import Part, pack, take_first, target_attention


def part(keep: torch.Tensor, index: int) -> Part:
    x = torch.arange(keep.numel(), dtype=torch.float32).view(*keep.shape, 1) + 100 * index + 1
    return Part(x=x, pos=-x, keep=keep, index=index)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_the_first_present_tokens_are_kept_in_their_order(rows):
    keep = torch.tensor(rows)

    index = take_first(keep, 4)

    for row, kept in zip(rows, index.tolist(), strict=True):
        present = [i for i, here in enumerate(row) if here][:4]
        assert kept[: len(present)] == present


def test_padding_is_zero_and_marked():
    keep = torch.tensor([[True, False, True], [False, True, False]])

    packed = pack([part(keep, 0), part(~keep, 1)], 4)

    assert packed.valid.tolist() == [[True, True, True, False], [True, True, True, False]]
    assert packed.x[~packed.valid].abs().sum() == 0
    assert packed.pos[~packed.valid].abs().sum() == 0
    assert packed.modality[0, :3].tolist() == [0, 0, 1]
    assert packed.where[0, :3].tolist() == [0, 2, 1]


def test_without_a_budget_nothing_is_padded_beyond_the_longest_row():
    keep = torch.tensor([[True, False, True], [False, True, False]])

    packed = pack([part(keep, 0)], None)

    assert packed.x.shape[1] == 2
    assert packed.valid.tolist() == [[True, True], [True, False]]


def test_groups_see_themselves_and_what_came_before():
    groups = torch.tensor([[2, 0, 1, 1, 0]])
    modality = torch.zeros(1, 5, dtype=torch.int64)

    attend = target_attention(groups, modality, causal=False, separate=False)[0]

    assert attend[:4].int().tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0],
    ]  # fmt: skip


def test_separate_keeps_modalities_apart():
    groups = torch.tensor([[2, 0, 1]])
    modality = torch.tensor([[0, 0, 1]])

    attend = target_attention(groups, modality, causal=False, separate=True)[0]

    assert attend.int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
