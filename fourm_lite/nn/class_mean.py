"""What a classifier sees, as the mean of the vectors of its classes."""

from __future__ import annotations

from torch import Tensor, nn


class ClassMean(nn.Module):
    """Logits of classes to the mean of the classes' vectors, each by its probability.

    Shapes:
        classes: float32[K, D], one vector a class
    Units:
        sharpness: what logits are multiplied by; below 1 second guesses count for more
    """

    classes: Tensor
    sharpness: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("classes", Tensor(classes, width).zero_())
        self.register_buffer("sharpness", Tensor([1.0]).squeeze(0))

    def forward(self, logits: Tensor, dropout: float = 0.0) -> Tensor:
        """float[B, K] -> float[B, D]; `dropout` has nothing to act on."""
        return (logits * self.sharpness).softmax(dim=-1) @ self.classes
