from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from fourm_lite.backbone.vit import FMViT


@pytest.fixture
def folder(tmp_path):
    """A tiny 4M model on disk, a head with three classes asked of it."""
    return tiny_model().save(tmp_path / "model")


@pytest.fixture
def vit(folder) -> FMViT:
    torch.manual_seed(0)
    return FMViT.from_pretrained(folder, num_classes=3)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
