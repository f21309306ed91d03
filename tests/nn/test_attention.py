from __future__ import annotations

import pytest
import torch

from fourm_lite.nn.attention import (
    Attention,
    CrossAttention,
    KVCache,
    blocked,
    eager_attention,
    fused_attention,
)


def tensors(generator, nq=5, nk=7):
    shapes = [(2, 3, nq, 4), (2, 3, nk, 4), (2, 3, nk, 4)]
    return [torch.randn(s, generator=generator) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_fused_form_equals_the_eager_one(generator, dtype):
    q, k, v = (t.to(dtype) for t in tensors(generator))
    attend = torch.rand(2, 1, 5, 7, generator=generator) < 0.5
    attend[0, 0, 1] = False  # a fully blocked row

    fused = fused_attention(q, k, v, blocked(attend, dtype))
    eager = eager_attention(q.float(), k.float(), v.float(), attend)

    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(fused.float(), eager, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fully_blocked_row_gets_the_mean_of_the_values(generator, dtype):
    q, k, v = (t.to(dtype) for t in tensors(generator))
    attend = torch.zeros(2, 1, 5, 7, dtype=torch.bool)

    out = fused_attention(q, k, v, blocked(attend, dtype))

    torch.testing.assert_close(out, v.mean(dim=2, keepdim=True).expand_as(out))


def test_no_keys_give_zeros(generator):
    q, k, v = tensors(generator, nk=0)

    assert fused_attention(q, k, v).abs().sum() == 0


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_cache_gives_what_the_whole_sequence_gives(generator, qk_norm):
    attention = Attention(12, 3, qk_norm=qk_norm).eval()
    x = torch.randn(2, 6, 12, generator=generator)
    causal = blocked(torch.ones(6, 6).tril().bool(), x.dtype)[None, None]

    whole = attention(x, causal)
    cache = KVCache.empty(torch.empty(2, 3, 0, 4), 6)
    steps = torch.cat([attention(x[:, t : t + 1], cache=cache) for t in range(6)], dim=1)

    torch.testing.assert_close(steps, whole, rtol=1e-5, atol=1e-6)


def test_rows_leave_a_cache(generator):
    cache = KVCache.empty(torch.empty(3, 2, 0, 4), 4)
    k = torch.randn(3, 2, 2, 4, generator=generator)
    cache.append(k, k)

    part = cache.select(torch.tensor([2, 0]))

    assert part.length == 2
    assert torch.equal(part.k[:, :, :2], k[[2, 0]])


def test_cross_attention_reuses_keys_and_values(generator):
    attention = CrossAttention(12, 3)
    x, context = (
        torch.randn(2, 4, 12, generator=generator),
        torch.randn(2, 5, 12, generator=generator),
    )
    keys_values = attention.keys_values(context)

    whole = attention(x, keys_values)
    first = attention(x[:, :1], keys_values)

    torch.testing.assert_close(whole[:, :1], first)
