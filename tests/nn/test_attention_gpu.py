"""Training on a GPU: rows whose keys are all blocked must not turn gradients into NaN."""

from __future__ import annotations

import pytest
import torch

from fourm_lite.nn.attention import blocked, eager_attention, fused_attention


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_blocked_rows_are_finite_and_the_others_are_right(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 8, 64, generator=g).cuda().requires_grad_() for _ in range(3))
    attend = torch.rand(2, 1, 8, 8, generator=g).cuda() > 0.3
    attend[:, :, 5:] = False  # padding

    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        out = fused_attention(q, k, v, blocked(attend, torch.float32))
    out[:, :, :5].float().square().sum().backward()
    found = [t.grad.clone() for t in (q, k, v)]
    for t in (q, k, v):
        t.grad = None
    eager_attention(q, k, v, attend)[:, :, :5].square().sum().backward()

    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for ours, t in zip(found, (q, k, v), strict=True):
        assert torch.allclose(ours, t.grad, atol=tolerance, rtol=tolerance)
