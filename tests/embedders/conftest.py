"""Photos drawn from formulas, tiny tokenizers, and a rule: nothing here reaches the network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image


def photo(seed: int, height: int = 75, width: int = 100) -> Image.Image:
    """Waves, an edge and noise: every frequency that a resize could get wrong."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * rng.uniform(0.05, 0.9) + y * rng.uniform(0.05, 0.9)) for _ in range(3)]
    pixels = 127 + 70 * np.stack(waves, axis=-1) + rng.normal(0, 15, (height, width, 3))
    pixels[:, width // 3 : width // 2] = rng.uniform(0, 255, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Landscape, portrait, square and odd sizes, smaller and larger than the tiny inputs."""
    sizes = [(75, 100), (121, 63), (64, 64), (33, 47)]
    return [photo(seed, *size) for seed, size in enumerate(sizes)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return ["a photo of a cat", "the big red house .", "dog"]


@pytest.fixture
def seeded():
    """Weights that do not depend on the order of the tests; the global state is given back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def unit(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors.detach().double(), dim=-1).float().numpy()
