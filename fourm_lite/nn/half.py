"""Linear maps with float16 weights that multiply and add in float32, for the CPU.

A weight keeps 11 bits, and is made float32 again in registers. So nothing is rounded but the
weights, and half as much is read of them: that is what a product with few rows waits for.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from fourm_lite.errors import FourMError
from fourm_lite.nn.rounded import RoundedLinear

_FBGEMM = "fbgemm"


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
    again = "call `half_weights`"

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
