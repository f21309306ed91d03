"""Linear maps for the CPU whose weights are held otherwise: int8, float16, or packed for MKL.

Here is what one map is; which maps of a model become such ones is said in `model/speed.py`, and for
the encoder as a ViT, with ranges of inputs that were measured, in `backbone/int8.py`. int8 weights
have a scale for each output. `Int8Linear` scales each token as it comes, so that what an item
gives does not depend on its neighbours in the batch. `RangedInt8Linear` is told the range of its
inputs beforehand: one pass less over the inputs and none over the outputs.

Unusual: without VNNI the CPU adds two products of neighbouring inputs in 16 bits and saturates.
The weights of a row are scaled so that no two neighbours can reach that, which costs them a
fraction of a bit and leaves the inputs all 8. There fbgemm is the faster with few rows, as in
decoding a text, oneDNN with many (docs/performance.md).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.errors import FourMError

SCALE = "weight_scale"
"""How the scales of int8 weights are called in a file, beside `weight`."""
_STEPS = 255
_FBGEMM = "fbgemm"


def can_int8() -> bool:
    """Whether this torch has the int8 products of oneDNN and of fbgemm (x86 builds do)."""
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return bool(onednn) and _FBGEMM in torch.backends.quantized.supported_engines


def has_vnni() -> bool:
    """Whether int8 products run on the CPU's own instructions, which add in 32 bits."""
    probe = getattr(torch.cpu, "_is_vnni_supported", None)
    return probe is not None and bool(probe())


class RoundedLinear(nn.Module):
    """A linear map for inference; a form says what it is called and maps rows.

    Args:
        layer: of any float dtype; left as it is
    """

    weights = "rounded weights"
    """What messages call them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[..., in_features] to float[..., out_features].

        Raises:
            FourMError: the input is not on the CPU
        """
        if x.device.type != "cpu":
            raise FourMError(
                f"{self.weights} run on the CPU only, the input is on {x.device}; use bfloat16 "
                "there"
            )
        rows = x.reshape(-1, self.in_features).float()
        if not len(rows):
            return x.new_zeros(*x.shape[:-1], self.out_features)
        return self._mapped(rows).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _mapped(self, rows: Tensor) -> Tensor:
        """float32[n, in_features] -> float32[n, out_features], n at least 1."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: value for name, value in self.stored().items()})

    def stored(self) -> dict[str, Tensor]:
        """What a file holds of it beside the bias, by name."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class _Int8(RoundedLinear):
    """What both forms share: int8 weights and their products."""

    weights = "int8 weights"

    def __init__(self, layer: nn.Linear, *, onednn: bool, scales: Tensor | None = None) -> None:
        super().__init__(layer)
        if not can_int8():
            raise FourMError(
                "int8 weights need torch's oneDNN and fbgemm (x86 CPUs), which this build lacks; "
                "use float32 or bfloat16"
            )
        self.onednn = onednn
        weight = layer.weight.detach().float().cpu()
        if scales is None or not _fits(weight, scales):
            scales = _scales(weight) if has_vnni() else unsaturated_scales(weight)
        self.scales = scales.detach().clone()
        self.zeros = torch.zeros(self.out_features, dtype=torch.int64)
        _told_once()
        whole = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.sums = whole.sum(dim=1) * self.scales  # of each row of rounded weights
        if onednn:
            self.packed = torch.ops.onednn.qlinear_prepack(whole, None)
        else:
            self.packed = _for_fbgemm(whole, self.scales, self.zeros)

    def _product(self, rows: Tensor, scale: float, zero: int, bias: Tensor | None) -> Tensor:
        """The product with rows rounded to (-zero ... 255 - zero) * scale."""
        if not self.onednn:
            y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                rows, scale, zero, self.packed
            )
            return y if bias is None else y.add_(bias)
        whole = _integers(torch.quantize_per_tensor(rows, scale, zero, torch.quint8))
        y = torch.ops.onednn.qlinear_pointwise(
            whole, scale, zero, self.packed, self.scales, self.zeros,
            bias, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return y


class Int8Linear(_Int8):
    """A linear map with int8 weights (a scale for each output) and inputs rounded token by token.

    A token's steps lie between its smallest and its largest input: what comes out of a GELU is
    hardly negative, and steps about zero would waste half of themselves on it.

    Args:
        layer: of any float dtype, on the CPU
        few_rows: it maps a handful of tokens at a time, as in decoding a text
        scales: float32[out_features] of weights that were rounded before; kept where this CPU can
            multiply with them
    """

    def __init__(
        self, layer: nn.Linear, *, few_rows: bool = False, scales: Tensor | None = None
    ) -> None:
        super().__init__(layer, onednn=has_vnni() or not few_rows, scales=scales)

    def _mapped(self, rows: Tensor) -> Tensor:
        # aminmax takes ten times as long as the two of them (torch 2.14, 1568 rows)
        low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
        span = (high - low).clamp_min(1e-30)
        y = self._product((rows - low).div_(span), 1 / _STEPS, 0, None).mul_(span)
        y.addcmul_(low, self.sums)
        return y if self.bias is None else y.add_(self.bias)

    def stored(self) -> dict[str, Tensor]:
        """The weights as int8[out_features, in_features], and the scale of each output."""
        if self.onednn:
            whole = self.packed.to_dense().t().contiguous()
        else:
            whole = torch.ops.quantized.linear_unpack(self.packed)[0].int_repr()
        return {"weight": whole, SCALE: self.scales}


class RangedInt8Linear(_Int8):
    """A linear map with int8 weights (a scale for each output) and inputs rounded in one range.

    Inputs outside of the range are cut off at its ends.

    Args:
        layer: of any float dtype, on the CPU
        low, high: the smallest and largest input
    """

    def __init__(self, layer: nn.Linear, low: float, high: float) -> None:
        super().__init__(layer, onednn=True)
        low, high = min(low, 0.0), max(high, 0.0)  # zero itself is kept exactly
        self.scale = max(high - low, 1e-30) / _STEPS
        self.zero = round(-low / self.scale)

    def _mapped(self, rows: Tensor) -> Tensor:
        return self._product(rows, self.scale, self.zero, self.bias)

    def stored(self) -> dict[str, Tensor]:
        """Nothing: what the ranges moved into biases has no place in a file.

        Raises:
            FourMError: always
        """
        raise FourMError(
            f"a model with {self.weights} of known ranges cannot be saved; save the model that it "
            "was made from, and quantize again after loading"
        )


def _integers(rounded: Tensor) -> Tensor:
    """The integers of a contiguous tensor of torch's own, which `int_repr` copies."""
    whole = torch.empty(0, dtype=torch.uint8)
    return whole.set_(rounded.untyped_storage(), 0, rounded.shape, rounded.stride())


@functools.cache
def _told_once() -> None:
    """Lets torch say, as it does once a process and here unheard, that these tensors will go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)


def _for_fbgemm(whole: Tensor, scales: Tensor, zeros: Tensor) -> Any:
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = _FBGEMM
        with warnings.catch_warnings():  # torch plans to move these kernels to torchao
            warnings.simplefilter("ignore", UserWarning)
            weight = torch._make_per_channel_quantized_tensor(whole, scales.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = before


def _scales(weight: Tensor) -> Tensor:
    """A scale for each row of float32[n, k] with which its largest weight is 127."""
    return torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).clamp_min(1e-30) / 127


def _fits(weight: Tensor, scales: Tensor) -> bool:
    """Whether this CPU multiplies float32[n, k], rounded with these scales, without saturating."""
    return has_vnni() or bool((_pair_sums(weight) <= scales * 128.5).all())


def unsaturated_scales(weight: Tensor) -> Tensor:
    """A scale for each row of float32[n, k] with which no sum of two products leaves 16 bits.

    The CPU adds the products of inputs 0 and 1, 2 and 3, ...; an input is at most 255, so two
    neighbouring weights of one sign may be 128 together.
    """
    # 127 and not 128: each of the two may be rounded up
    return _pair_sums(weight).clamp_min(1e-30) / 127


def _pair_sums(weight: Tensor) -> Tensor:
    """The largest sum of two neighbouring weights of one sign in each row: float32[n]."""
    pairs = nn.functional.pad(weight, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2))
    sums = [(sign * pairs).clamp_min(0).sum(dim=2).amax(dim=1) for sign in (1, -1)]
    return torch.maximum(*sums)


def can_half() -> bool:
    """Whether this torch has fbgemm's products with float16 weights (x86 builds do)."""
    return _FBGEMM in torch.backends.quantized.supported_engines


class HalfLinear(RoundedLinear):
    """A linear map with float16 weights, float32 inputs and outputs; for inference only.

    Args:
        layer: of any float dtype, on the CPU; left as it is

    Raises:
        FourMError: a weight is beyond float16, or this torch lacks the kernels
    """

    weights = "float16 weights"

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        if not can_half():
            raise FourMError(
                "float16 weights on the CPU need torch's fbgemm (x86 CPUs), which this build "
                "lacks; use float32 or bfloat16"
            )
        weight = layer.weight.detach()
        if weight.device.type != "cpu":
            raise FourMError(
                f"these float16 weights run on the CPU only, the layer is on {weight.device}; use "
                "model.to(torch.bfloat16) there"
            )
        weight = weight.float()
        largest, most = float(weight.abs().max()), torch.finfo(torch.float16).max
        if not largest <= most:
            raise FourMError(
                f"float16 ends at {most:.0f}, a weight is {largest:.4g}; use float32 for this model"
            )
        with warnings.catch_warnings():  # torch plans to move these kernels to torchao
            warnings.simplefilter("ignore", UserWarning)
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight, None)

    def _mapped(self, rows: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, self.packed)
        return y if self.bias is None else y.add_(self.bias)

    def stored(self) -> dict[str, Tensor]:
        """The weights as float16[out_features, in_features]."""
        weight, _ = torch.ops.quantized.linear_unpack_fp16(self.packed)
        return {"weight": weight.half()}


_ROWS = 196  # what MKL lays the weights out for; the layout serves any number of rows


def can_pack() -> bool:
    """Whether this torch has MKL's packed products (x86 builds do)."""
    return bool(torch.backends.mkl.is_available()) and hasattr(torch.ops.mkl, "_mkl_linear")


class PackedLinear(nn.Module):
    """A linear map of a layer whose weights are float32 and on the CPU; for inference only.

    Args:
        layer: left as it is
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise FourMError(
                f"packed weights are float32 on the CPU, these are {weight.dtype} on "
                f"{weight.device}; load the model with dtype=torch.float32 there"
            )
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), _ROWS)
        self.bias = layer.bias
        self._shape = torch.empty(1).expand(self.out_features, self.in_features)  # only asked for

    @property
    def weight(self) -> Tensor:
        """The weights in their plain order, exactly: float32[out_features, in_features]."""
        return self._product(torch.eye(self.in_features), None).t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Maps float32[..., in_features] to float32[..., out_features]."""
        if (
            x.dtype != torch.float32
            or x.device.type != "cpu"
            or (x.requires_grad and torch.is_grad_enabled())
        ):
            raise FourMError(
                f"packed weights take float32 inputs on the CPU and give no gradients, the input "
                f"is {x.dtype} on {x.device}; use the model that was packed"
            )
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], self.out_features)
        return self._product(x, self.bias)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.numel() // self.in_features
        y: Tensor = torch.ops.mkl._mkl_linear(x, self.packed, self._shape, bias, rows)
        return y

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def replace_linear(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Puts `make(layer)` in the place of every plain linear map below a module."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, make(child))
        else:
            replace_linear(child, make)
