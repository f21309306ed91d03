"""Options that trade memory, precision or a wait for speed: packed, int8 weights, compiled blocks.

Unusual: int8 inputs get a scale for every token, so that what an item gives does not depend on its
neighbours in the batch. bfloat16 needs nothing from here: `load_model(..., dtype=torch.bfloat16)`,
or `Sampler(..., autocast=torch.bfloat16)`. What each gives is measured in docs/performance.md.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.errors import FourMError
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.linear import prefers_onednn
from fourm_lite.nn.packed import PackedLinear, can_pack, replace_linear

_LARGEST = 63  # inputs are 7-bit: without VNNI, a sum of two 8-bit products overflows 16 bits
_LARGEST_VNNI = 127
_ENGINE = "fbgemm"


def has_vnni() -> bool:
    """Whether int8 products run on the CPU's own instructions, with whole 8-bit inputs."""
    probe = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(torch.backends.mkldnn.is_available() and probe is not None and probe())


class Int8Linear(nn.Module):
    """A linear map with int8 weights (a scale for each output) and int8 inputs (one each token).

    Args:
        layer: of any float dtype, on the CPU
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().float().cpu()
        self.vnni, self.scales = has_vnni(), weight.abs().amax(dim=1).clamp_min(1e-30) / 127
        self.packed = _packed_vnni(weight, self.scales) if self.vnni else _packed(weight)
        self.zeros = torch.zeros(self.out_features, dtype=torch.int64)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[..., in_features] to float[..., out_features]."""
        if x.device.type != "cpu":
            raise FourMError(
                f"int8 weights run on the CPU only, the input is on {x.device}; use bfloat16 there"
            )
        rows = x.reshape(-1, self.in_features).float()
        if not len(rows):
            return x.new_zeros(*x.shape[:-1], self.out_features)
        low, high = rows.aminmax(dim=1, keepdim=True)
        largest = torch.maximum(-low, high).clamp_min(1e-30)
        y = (self._vnni if self.vnni else self._fbgemm)(rows, largest).mul_(largest)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _fbgemm(self, rows: Tensor, largest: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / largest, 1 / _LARGEST, _LARGEST + 1, self.packed
        )
        return y

    def _vnni(self, rows: Tensor, largest: Tensor) -> Tensor:
        # The conversion cuts off what is after the point, so half is added to round.
        whole = (rows * (_LARGEST_VNNI / largest)).add_(_LARGEST_VNNI + 1.5).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1 / _LARGEST_VNNI, _LARGEST_VNNI + 1, self.packed, self.scales, self.zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return y

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise FourMError(
            "a model with int8 weights cannot be saved; save the model that it was made from, and "
            "quantize again after loading"
        )

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _packed_vnni(weight: Tensor, scales: Tensor) -> Tensor:
    """The packed form, for oneDNN, of float32[n, k] rounded to int8 by its scales float32[n]."""
    rounded = (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    packed: Tensor = torch.ops.onednn.qlinear_prepack(rounded, None)
    return packed


def _packed(weight: Tensor) -> Any:
    """The packed form, for fbgemm, of float32[n, k] rounded to int8, symmetric, one scale a row."""
    if _ENGINE not in torch.backends.quantized.supported_engines:
        raise FourMError(
            f"int8 weights need torch's {_ENGINE!r} kernels (x86 CPUs), this build has "
            f"{torch.backends.quantized.supported_engines}; use float32 or bfloat16"
        )
    before = torch.backends.quantized.engine
    scales = weight.abs().amax(dim=1).clamp_min(1e-30).double() / 127
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    try:
        torch.backends.quantized.engine = _ENGINE
        with warnings.catch_warnings():  # torch plans to move these kernels to torchao
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(rounded, None)
    finally:
        torch.backends.quantized.engine = before


def quantize_int8(model: FourM) -> FourM:
    """A copy of a model with int8 linear maps in its blocks and its logits, for the CPU.

    Embeddings, norms and the patch projection stay as they are and are shared with the model that
    is given, which does not change. Let go of that one to free its weights.

    Raises:
        FourMError: the weights are not on the CPU, or torch lacks the kernels

    Example:
        >>> small = quantize_int8(load_model("mini"))  # doctest: +SKIP
    """
    if model.device.type != "cpu":
        raise FourMError(
            f"int8 weights run on the CPU only, the model is on {model.device}; "
            "use model.to(torch.bfloat16) there"
        )
    return _with_linear(model, Int8Linear)


def pack_weights(model: FourM) -> FourM:
    """A copy of a model whose weights lie as MKL's float32 products read them, for the CPU.

    The same numbers up to rounding, faster wherever a product has few rows: texts of several items,
    guided images. Let go of the model that is given, which does not change, to free its weights;
    while both are there the memory is twice as much. Where torch has no MKL, or multiplies plain
    weights faster by oneDNN (CPUs that are not Intel's), the model itself is returned.

    Raises:
        FourMError: the weights are not float32 on the CPU

    Example:
        >>> fast = pack_weights(load_model("mini"))  # doctest: +SKIP
    """
    worth_it = can_pack() and not prefers_onednn()
    return _with_linear(model, PackedLinear) if worth_it else model


def _with_linear(model: FourM, make: Callable[[nn.Linear], nn.Module]) -> FourM:
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared).eval()  # the memo keeps every tensor from being copied
    for embedding in other.decoder_embeddings.values():
        embedding.to_logits = make(embedding.to_logits)  # type: ignore[arg-type]
    for part in (other.encoder, other.decoder):
        replace_linear(part, make)
    other.decoder_proj_context = make(other.decoder_proj_context)  # type: ignore[assignment]
    return other


def compile_blocks(model: FourM, **options: Any) -> FourM:
    """The same model, each block compiled when it is first called; its weights are untouched.

    All blocks of a kind share one graph, and sizes are dynamic, so that a text that grows does not
    compile again with every token.

    Args:
        model: in eval mode
        options: for `torch.compile`, such as `mode` or `backend`
    """
    options = {"dynamic": True, **options}
    for block in (*model.encoder, *model.decoder):
        block.compile(**options)
    return model
