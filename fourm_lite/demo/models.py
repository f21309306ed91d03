"""The model that examples run on: the shipped one, or a small one with random weights."""

from __future__ import annotations

from pathlib import Path

from fourm_lite.demo.drawings import drawings
from fourm_lite.demo.random_weights import write_random_family
from fourm_lite.demo.shipped_photos import EXAMPLES
from fourm_lite.errors import CheckpointError

SHIPPED = "mini"


def example_model(folder: str | Path = "random_model") -> Path:
    """The shipped model's folder; where none ships, `folder`, into which random weights go."""
    from fourm_lite.io.hub import shipped

    try:
        return shipped(SHIPPED)
    except CheckpointError:
        captions = [d.caption for d in drawings(216, size=8)]
        return write_random_family(Path(folder), [*captions, *EXAMPLES] * 3)
