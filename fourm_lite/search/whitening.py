"""Predicted vectors spread over more directions before they are searched by.

The best guess of a vector is the mean of all that fit, so most of its length lies in the few
directions that photos differ in most, and a search by it finds what many photos have. Less of those
directions, and the rest tells photos apart: partial whitening, of queries alone. Galleries and the
centred cosine stay as they are.

The directions are the principal axes of photos' vectors in the space, learnt once
(`fourm-lite spread`) and kept beside the model, as `spread.safetensors`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fourm_lite.errors import CheckpointError, ConfigError, ShapeError
from fourm_lite.io.layout import SPREAD
from fourm_lite.io.writing import write_file
from fourm_lite.reading.regular import check_size
from fourm_lite.unit import Floats, lengths, unit

AXES, POWER = 64, 0.3


@dataclass(frozen=True)
class QueryWhitening:
    """How queries are spread.

    Shapes:
        axes: float32[K, E], orthonormal, what photos vary in most first
        variance: float32[K], of photos along them
    Units:
        target: the modality whose vectors these are
        power: an axis is divided by (its variance over the last one's) to this power: 0 leaves a
            query as it is, 0.5 makes variances alike
    """

    target: str
    axes: Floats
    variance: Floats
    power: float = POWER

    def __post_init__(self) -> None:
        """Refuses what is no spread."""
        if self.axes.ndim != 2 or self.variance.shape != self.axes.shape[:1]:
            raise ConfigError(
                f"expected axes [K, E] and K variances, got {list(self.axes.shape)} and "
                f"{list(self.variance.shape)}"
            )
        if not np.isfinite(self.axes).all() or not len(self.axes):
            raise ConfigError("expected axes of finite numbers, at least one")
        if not 0 <= self.power <= 1 or not (self.variance > 0).all():
            raise ConfigError(
                f"expected a power in 0..1 and variances above 0, got {self.power} and a least "
                f"variance of {self.variance.min():g}"
            )

    def __call__(self, directions: Floats) -> Floats:
        """Unit vectors of centred ones: float32[..., E] -> float32[..., E]."""
        along = directions @ self.axes.T
        kept = (self.variance / self.variance[-1]) ** -self.power
        return unit((directions + (along * (kept - 1)) @ self.axes).astype(np.float32))

    def save(self, folder: Path) -> Path:
        """Writes it beside a model and returns the file."""
        path = Path(folder) / SPREAD
        told = {"format": "1", "target": self.target, "power": json.dumps(self.power)}
        axes, variance = torch.tensor(self.axes).half(), torch.tensor(self.variance)
        write_file(path, {"axes": axes, "variance": variance}, metadata=told)
        return path


def fit_whitening(
    vectors: Floats, target: str, *, axes: int = AXES, power: float = POWER
) -> QueryWhitening:
    """The principal axes of photos' centred unit vectors float32[N, E].

    Raises:
        ConfigError: there are fewer photos or dimensions than axes
    """
    if min(vectors.shape) <= axes:
        raise ConfigError(
            f"{axes} axes need more photos and dimensions than that, got vectors of the shape "
            f"{list(vectors.shape)}; give more photos or fewer --axes"
        )
    variance, found = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors / len(vectors))
    first = slice(-1, -axes - 1, -1)
    # At least a billionth of the largest, as axes without any variance divide by nothing.
    kept = np.maximum(variance[first], 1e-9 * max(variance[-1], 1e-30)).astype(np.float32)
    return QueryWhitening(target, found.T[first].astype(np.float32), kept, power)


def read_whitening(folder: Path | None, target: str) -> QueryWhitening | None:
    """The spread beside a model, or None where there is none for this target.

    Raises:
        CheckpointError: the file is damaged
    """
    path = None if folder is None else Path(folder) / SPREAD
    if path is None or not path.is_file():
        return None
    try:
        check_size(path)
        with safe_open(path, framework="np") as file:
            told = file.metadata() or {}
            if told.get("target") != target:
                return None
            axes = file.get_tensor("axes").astype(np.float32)
            variance = file.get_tensor("variance").astype(np.float32)
        return QueryWhitening(target, axes, variance, float(json.loads(told["power"])))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; make it again (fourm-lite spread) or remove it"
        ) from error


Source = Literal["tokenizer", "gallery", "none"]

UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Centre:
    """How raw vectors become the unit vectors that are compared.

    Shapes:
        mean: float32[E], or None where nothing is taken off
    Units:
        source: where the mean comes from
        unit_first: vectors are made unit length before the mean is taken off
    """

    mean: Floats | None = None
    source: Source = "none"
    unit_first: bool = False

    def __call__(self, raw: Floats) -> Floats:
        """Unit vectors of raw ones; float32[..., E] -> float32[..., E]."""
        x = np.asarray(raw, np.float32)
        if self.mean is None:
            return unit(x)
        if x.shape[-1] != len(self.mean):
            raise ShapeError(
                f"the centre has width {len(self.mean)}, the vectors {x.shape[-1]}; they are of "
                "different networks"
            )
        return unit((unit(x) if self.unit_first else x) - self.mean)


UNCENTRED = Centre()
"""Nothing is taken off."""


def gallery_centre(raw: Floats) -> Centre:
    """The centre of a gallery's own mean.

    Shapes:
        raw: float32[G, E]
    """
    if has_unit_length(raw):
        return Centre(unit(raw).mean(axis=0, dtype=np.float64).astype(np.float32), "gallery", True)
    return Centre(raw.mean(axis=0, dtype=np.float64).astype(np.float32), "gallery")


def has_unit_length(raw: Floats) -> bool:
    """Whether all vectors are of length 1, up to rounding."""
    return bool(np.all(np.abs(lengths(raw) - 1) < UNIT_TOLERANCE))
