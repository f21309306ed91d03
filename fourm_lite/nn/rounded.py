"""What linear maps with rounded weights for the CPU share: they run there alone, and are not saved.

The weights lie as the CPU's kernels read them and cannot be told back; rounded ones would be a
worse checkpoint anyway.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fourm_lite.errors import FourMError


class RoundedLinear(nn.Module):
    """A linear map for inference; a form says what it is called and maps rows.

    Args:
        layer: of any float dtype; left as it is
    """

    weights = "rounded weights"
    """What messages call them."""
    again = "quantize"
    """What is done again after loading."""

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

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise FourMError(
            f"a model with {self.weights} cannot be saved; save the model that it was made from, "
            f"and {self.again} again after loading"
        )

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
