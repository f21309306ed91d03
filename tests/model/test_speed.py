"""Every speed mode gives what the plain float32 model gives, to its own precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tiny import MARKS, STYLES, tiny_batch, tiny_model
from torch import Tensor, nn

from fourm_lite.batch import TokenBatch
from fourm_lite.errors import FourMError
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import load_model
from fourm_lite.model.speed import compile_blocks, half_weights, pack_weights, quantize_int8
from fourm_lite.nn import layers as linear
from fourm_lite.nn.cpu_linear import Int8Linear, PackedLinear, can_int8, can_pack, has_vnni
from fourm_lite.nn.layers import FEW_ROWS, project
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Sampler

GIVEN = ["rgb@16", "tok_depth@16", "t5"]
pytestmark = pytest.mark.skipif(not can_int8(), reason="no int8 products here")


def model_of(style: str) -> FourM:
    return tiny_model(style, scale=6.0, dim=64, num_heads=4)


def logits_of(model: FourM, batch: TokenBatch, **options: object) -> Tensor:
    """Of the first step of a grid and of every token of a text, one after the other."""
    sampler = Sampler(model, marks=MARKS, **options)
    plan = Plan.of(Target("tok_global", scheme="roar", steps=1, temperature=0, guidance=2.0))
    (result,) = sampler.iterate(batch, plan)
    return result.logits.float()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


MODES: dict[str, tuple[float, Callable[[FourM, TokenBatch], Tensor]]] = {
    "bf16 weights": (0.999, lambda m, b: logits_of(copy.deepcopy(m).bfloat16(), b)),
    "bf16 autocast": (0.999, lambda m, b: logits_of(m, b, autocast=torch.bfloat16)),
    "packed": (0.999999, lambda m, b: logits_of(pack_weights(m), b)),
    "half": (0.99999, lambda m, b: logits_of(half_weights(m), b)),
    "int8": (0.98, lambda m, b: logits_of(quantize_int8(m), b)),
    "compiled": (
        0.999999,
        lambda m, b: logits_of(compile_blocks(copy.deepcopy(m), backend="eager"), b),
    ),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", MODES)
def test_every_speed_mode_agrees_with_plain_float32(style, mode):
    model, batch = model_of(style), tiny_batch(GIVEN, 4)
    least, run = MODES[mode]

    assert cosine(run(model, batch), logits_of(model, batch)) >= least


@pytest.mark.parametrize(
    "mode",
    [
        lambda m: m.bfloat16(),
        half_weights,
        quantize_int8,
        lambda m: compile_blocks(m, backend="eager"),
    ],
)
def test_every_speed_mode_writes_a_text_and_fills_a_grid(mode):
    model, batch = mode(model_of("swiglu")), tiny_batch(["rgb@16"], 3)
    targets = [Target("tok_depth@16", steps=3, guidance=2.0), Target("caption", guidance=1.5)]

    out = Sampler(model, marks=MARKS).run(batch, Plan.of(*targets), seed=1)

    assert out["tok_depth@16"].inputs.all()
    assert out["caption"].inputs.any()


def test_with_int8_weights_an_item_does_not_depend_on_its_neighbours():
    model, batch = quantize_int8(model_of("swiglu")), tiny_batch(GIVEN, 4)
    louder = batch.with_({"rgb@16": type(batch["rgb@16"])(
        batch["rgb@16"].value * torch.tensor([1.0, 2.5, 1.0, 1.0])[:, None, None, None],
        batch["rgb@16"].inputs, batch["rgb@16"].targets)})  # fmt: skip

    both = logits_of(model, batch), logits_of(model, louder)

    torch.testing.assert_close(both[0][0], both[1][0])
    assert not torch.allclose(both[0][1], both[1][1])


@pytest.mark.parametrize("made", [quantize_int8, half_weights])
def test_smaller_weights_share_what_is_kept_and_leave_the_model_alone(made):
    model = model_of("gelu")
    before = {n: t.clone() for n, t in model.state_dict().items()}

    small = made(model)

    assert not any(isinstance(m, nn.Linear) for m in small.encoder.modules())
    assert small.mask_token is model.mask_token
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.skipif(not can_pack(), reason="this torch has no MKL")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 4, 196, 777])
def test_packed_weights_serve_any_number_of_rows_and_come_back_bit_for_bit(rows, bias):
    layer = nn.Linear(96, 130, bias=bias)
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(0))
    packed = PackedLinear(layer)

    with torch.inference_mode():
        torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(packed.weight, layer.weight)
    with pytest.raises(FourMError, match="give no gradients"):
        packed(x.requires_grad_())


def test_a_packed_model_is_saved_like_the_one_it_was_made_from(tmp_path):
    model = model_of("gelu")

    pack_weights(model).save(tmp_path / "model")

    again = load_model(tmp_path / "model").state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(t, again[n]) for n, t in model.state_dict().items())


@pytest.mark.skipif(has_vnni(), reason="with VNNI one product serves few rows and many")
def test_without_vnni_what_is_decoded_has_the_product_for_few_rows():
    small = quantize_int8(model_of("swiglu"))

    assert all(m.onednn for m in small.encoder.modules() if isinstance(m, Int8Linear))
    many = {n for n, m in small.decoder.named_modules() if getattr(m, "onednn", False)}
    assert many == {f"{i}.cross_attn.kv" for i in range(len(small.decoder))}
    assert {e.to_logits.onednn for e in small.decoder_embeddings.values()} == {False}


@pytest.mark.parametrize("few_rows", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_map_rounds_each_token_by_itself(bias, few_rows):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
    x = torch.randn(2, 5, 64, generator=generator) * 10.0 ** torch.arange(-5, 5).view(2, 5, 1)
    small = Int8Linear(layer, few_rows=few_rows)

    with torch.no_grad():
        plain, rounded = layer(x), small(x)

    error = (plain - rounded).norm(dim=-1) / plain.norm(dim=-1)
    assert float(error.max()) < 0.05
    assert small(x[:, :0]).shape == (2, 0, 48)


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_a_map_gives_the_same_by_whichever_product(rows, bias, onednn, monkeypatch):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(linear, "prefers_onednn", lambda: onednn)
    layer = nn.Linear(12, 20, bias=bias)
    x = torch.randn(rows, 1, 12, generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        fast, flat = project(layer, x), project(layer, x[:, 0])

    assert torch.equal(fast[:, 0], flat)
    torch.testing.assert_close(fast, layer(x).detach(), rtol=1e-6, atol=1e-6)
    assert project(layer, x).requires_grad
