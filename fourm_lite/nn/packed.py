"""Linear maps whose float32 weights lie in memory as MKL's products read them, for CPU inference.

A plain product copies the weights into that order in every call; with few rows the copy takes as
long as the product. Unusual: the packed form can be told back bit for bit, by a product with the
identity, so a packed module still has its `state_dict` and is saved like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.errors import FourMError

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
