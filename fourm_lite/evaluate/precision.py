"""What a precision costs in agreement: vectors of a few photos beside those of float32.

Vectors are the global embedding that the model predicts, or else the mean of its encoder's tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import FourMError
from fourm_lite.io.checkpoint import Checkpoint, Source, read
from fourm_lite.io.files import write_json
from fourm_lite.io.hub import cache_folder
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.unit import unit

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "precisions.json"


@dataclass(frozen=True)
class Agreement:
    """How near the vectors of one precision are to float32's.

    Units:
        least, mean: cosines of a photo's two vectors
        same_first: photos whose nearest other photo, among float32's vectors, is the same one
    """

    least: float
    mean: float
    same_first: int
    photos: int
    what: str

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"cosine of {self.what} to float32's {self.mean:.5f} on average and {self.least:.5f} "
            f"at least, the same first hit for {self.same_first} of {self.photos} photos "
            "(measured on this machine)"
        )


def agreement(
    source: Source, dtype: str, photos: Sequence[Image], *, device: str | None = None
) -> Agreement:
    """How near a model's vectors of photos are to float32's.

    Raises:
        FourMError: the model cannot be opened so, or reads no photos
    """
    checkpoint = read(source)
    plain, what = _vectors(checkpoint, "float32", photos, device)
    found, _ = _vectors(checkpoint, dtype, photos, device)
    cosines = (plain * found).sum(axis=1)
    same = _nearest_other(plain, plain) == _nearest_other(found, plain)
    return Agreement(
        float(cosines.min()), float(cosines.mean()), int(same.sum()), len(photos), what
    )


def measure_once(
    source: str,
    dtype: str,
    photos: Callable[[], Sequence[Image]],
    *,
    device: str | None = None,
    cache: Path | None = None,
) -> Agreement | None:
    """`agreement`, where this machine has not measured it yet; afterwards None.

    None, too, of a model that reads no photos.
    """
    checkpoint = read(source)
    file = (cache or cache_folder()) / FILE
    known = _known(file)
    key = _key(checkpoint, dtype, device)
    if key in known:
        return None
    try:
        found = agreement(checkpoint, dtype, photos(), device=device)
    except FourMError:
        return None
    with contextlib.suppress(FourMError):  # a cache that cannot be written only costs time
        write_json(file, {**known, key: asdict(found)})
    return found


def _vectors(
    checkpoint: Checkpoint, dtype: str, photos: Sequence[Image], device: str | None
) -> tuple[Any, str]:
    """Unit vectors float32[N, D], and what they are."""
    with contextlib.suppress(FourMError):
        pipe = FourMPipeline.from_pretrained(checkpoint, dtype=dtype, device=device)
        if pipe.tokenizers.has(pipe.embedding_target()):
            return pipe.embed([{"rgb": photo} for photo in photos]), "embeddings"
    vit = FMViT.from_pretrained(checkpoint, num_classes=0, dtype=dtype, device=device)
    side = vit.input_size[-1]
    pixels = [np.asarray(p.convert("RGB").resize((side, side)), np.float32) for p in photos]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        rows = vit(images.to(next(vit.parameters()))).float().cpu().numpy()
    return unit(rows), "the encoder's mean"


def _nearest_other(queries: Any, gallery: Any) -> Any:
    scores = queries @ gallery.T
    np.fill_diagonal(scores, -np.inf)
    return scores.argmax(axis=1)


def _key(checkpoint: Checkpoint, dtype: str, device: str | None) -> str:
    """What the figure depends on: the weights' files, the precision, the machine."""
    files = sorted({file.path.resolve() for file in checkpoint.files.values()})
    facts = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    cpu = torch.backends.cpu.get_cpu_capability()
    told = (facts, dtype, device or "cpu", torch.__version__, cpu)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:24]


def _known(file: Path) -> dict[str, Any]:
    try:
        return read_json_object(file) if file.exists() else {}
    except (FourMError, OSError):
        return {}
