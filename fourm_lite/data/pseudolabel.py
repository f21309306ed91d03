"""Labels made by machines: what teachers and formulas say about each crop of each photo.

Resumable: a shard that is already written is not computed again, unless one of its photos was
replaced. Crops depend on the seed and the id of the photo alone, so a second run cuts the same
places. Shards are plain npz without pickle.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fourm_lite.data.edges import canny
from fourm_lite.data.freshness import CONTENT, Digests, check_others, digests, lacks
from fourm_lite.data.label_provenance import claim, claim_labels
from fourm_lite.data.palette import describe, palette
from fourm_lite.data.tar_samples import KEPT
from fourm_lite.data.unread import (
    check_same,
    check_some,
    left_out_of,
    note_of_left_out,
    opened,
)
from fourm_lite.errors import ConfigError, FourMError, check_most, suggest
from fourm_lite.io.files import remove_leftovers, write_npz
from fourm_lite.io.onnx import fold_weights, with_outputs
from fourm_lite.modalities.codec_types import Crop
from fourm_lite.modalities.crops import CropPolicy, crops, cut_image, cut_labels, to_settings
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.records import Record
from fourm_lite.progress import Progress
from fourm_lite.reading.regular import read_bytes

log = logging.getLogger(__name__)
Pixels = npt.NDArray[np.uint8]
CROPS = "crop_settings"


@dataclass(frozen=True)
class Cuts:
    """The crops of some photos, decoded; photos that cannot be read are left out.

    Shapes:
        pixels: uint8[B, n, S, S, 3], B photos of n crops each
    """

    records: Sequence[Record]
    crops: Sequence[Sequence[Crop]]
    sizes: Sequence[tuple[int, int]]
    pixels: Pixels
    left_out: tuple[Skipped, ...] = ()


class Labeller(Protocol):
    """Something that says a thing about each crop."""

    @property
    def names(self) -> tuple[str, ...]:
        """The labels that it makes."""
        ...

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """One array [B, n, ...] for each of `names`."""
        ...


@dataclass
class OnnxTeacher:
    """Outputs of a network in an ONNX file, called with pixels in [0, 1].

    Units:
        outputs: label name -> output of the file, or a tensor inside its graph; half: stored as
            float16
    """

    path: Path
    outputs: Mapping[str, str]
    size: int = 224
    threads: int = 1
    half: frozenset[str] = frozenset()
    batch: int = 16
    _session: Any = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels that it makes."""
        return tuple(self.outputs)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Runs the network over all crops."""
        count = cuts.pixels.shape[:2]
        flat = cuts.pixels.reshape(-1, *cuts.pixels.shape[2:])
        parts = [self._run(flat[i : i + self.batch]) for i in range(0, len(flat), self.batch)]
        out: dict[str, npt.NDArray[Any]] = {}
        for k, name in enumerate(self.outputs):
            value = np.concatenate([p[k] for p in parts])
            value = value.astype(np.float16) if name in self.half else value
            out[name] = value.reshape(*count, *value.shape[1:])
        return out

    def ranks(self) -> dict[str, int]:
        """Every output of the file and what else is asked for, and how many axes each has.

        Raises:
            ConfigError: an output is neither one of the file nor a tensor of floats in its graph
        """
        self._open()
        return {o.name: len(o.shape) for o in self._session.get_outputs()}

    def _open(self) -> None:
        if self._session is None:
            self._session = _onnx_session(self.path, self.threads, list(self.outputs.values()))

    def _run(self, pixels: Pixels) -> list[npt.NDArray[Any]]:
        self._open()
        x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / 255.0
        result: list[npt.NDArray[Any]] = self._session.run(
            list(self.outputs.values()), {self._session.get_inputs()[0].name: x}
        )
        return result


def _onnx_session(path: Path, threads: int, outputs: Sequence[str] = ()) -> Any:
    """A session of the file; `outputs` that it does not give are looked for inside its graph."""
    try:
        import onnxruntime
    except ImportError as error:
        raise FourMError("a teacher in ONNX form needs `pip install onnxruntime`") from error
    if not Path(path).is_file():
        raise FourMError(f"expected an ONNX file, found none at {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    fold_weights(options, Path(path))
    start = partial(onnxruntime.InferenceSession, providers=["CPUExecutionProvider"])
    session = start(str(path), options)
    known = [o.name for o in session.get_outputs()]
    inner = [name for name in outputs if name not in known]
    if not inner:
        return session
    try:
        return start(with_outputs(read_bytes(path), inner), options)
    except Exception as error:  # onnxruntime's own classes derive from RuntimeError, or do not
        raise ConfigError(
            f"{path} has no output {inner[0]!r}, nor floats of that name inside."
            f"{suggest(inner[0], known)} Its outputs: {', '.join(known)}"
        ) from error


@dataclass
class SegmentationTeacher:
    """Class maps of an ONNX segmentation network, by argmax after enlarging its scores.

    Units:
        size: side that the network reads, 32k + 1; map_size: side of the class map
    """

    path: Path
    size: int = 385
    map_size: int = 56
    threads: int = 1
    names: tuple[str, ...] = ("semseg",)
    _session: Any = field(default=None, repr=False)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Class maps uint8[B, n, map_size, map_size]."""
        flat = cuts.pixels.reshape(-1, *cuts.pixels.shape[2:])
        maps = np.stack([self._one(pixels) for pixels in flat])
        return {self.names[0]: maps.reshape(*cuts.pixels.shape[:2], *maps.shape[1:])}

    def _one(self, pixels: Pixels) -> Pixels:
        from PIL import Image

        if self._session is None:
            self._session = _onnx_session(self.path, self.threads)
        image = Image.fromarray(pixels).resize((self.size,) * 2, Image.Resampling.BICUBIC)
        x = (np.asarray(image).transpose(2, 0, 1)[None] / 255).astype(np.float32)
        (logits,) = self._session.run(None, {self._session.get_inputs()[0].name: x})
        scores = torch.nn.functional.interpolate(
            torch.from_numpy(logits), (self.map_size,) * 2, mode="bilinear", align_corners=True
        )
        return scores[0].argmax(0).to(torch.uint8).numpy()


@dataclass
class GivenMaps:
    """Class maps that somebody made before, cut as the photo is cut.

    Shapes:
        maps: id -> uint8[h, w] of the whole photo
    """

    maps: Mapping[str, Pixels]
    map_size: int = 56
    names: tuple[str, ...] = ("semseg",)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Class maps uint8[B, n, map_size, map_size]."""
        absent = [r.id for r in cuts.records if r.id not in self.maps]
        if absent:
            raise FourMError(f"{len(absent)} photos have no class map, such as {absent[0]!r}")
        rows = [
            [cut_labels(self.maps[r.id], c, of=size, size=self.map_size) for c in crop]
            for r, crop, size in zip(cuts.records, cuts.crops, cuts.sizes, strict=True)
        ]
        return {self.names[0]: np.array(rows, dtype=np.uint8)}


@dataclass
class EdgeLabeller:
    """Canny edges, eight pixels a byte."""

    sigma: float = 1.4
    low: float = 0.04
    high: float = 0.10
    names: tuple[str, ...] = ("canny_edge",)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Packed edges uint8[B, n, S, S/8]; `unpack_edges` gives them back."""
        rows = []
        for pixels in cuts.pixels:
            image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            rows.append(canny(image, sigma=self.sigma, low=self.low, high=self.high).numpy())
        return {self.names[0]: np.packbits(np.stack(rows), axis=-1)}


def unpack_edges(packed: Pixels) -> npt.NDArray[np.bool_]:
    """Edges of an `EdgeLabeller`: uint8[..., S, S/8] -> bool[..., S, S]."""
    return np.unpackbits(packed, axis=-1).astype(bool)


@dataclass
class PaletteLabeller:
    """The main colours of each crop, padded with -1."""

    count: int = 7
    names: tuple[str, ...] = ("color_palette",)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """Colours int16[B, n, count, 3], the most frequent first."""
        out = np.full((*cuts.pixels.shape[:2], self.count, 3), -1, dtype=np.int16)
        for i, j in np.ndindex(out.shape[:2]):
            colors = palette(cuts.pixels[i, j], self.count)
            out[i, j, : len(colors)] = colors
        return {self.names[0]: out}


METADATA = ("original_width", "original_height", "colorfulness", "brightness", "contrast",
            "saturation", "entropy")  # fmt: skip
"""What `MetadataLabeller` writes, in the order of its last axis."""


@dataclass
class MetadataLabeller:
    """Numbers of each crop, in the order of `METADATA`; width and height are those of the file."""

    names: tuple[str, ...] = ("metadata",)

    def __call__(self, cuts: Cuts) -> dict[str, npt.NDArray[Any]]:
        """float32[B, n, len(METADATA)]."""
        out = np.zeros((*cuts.pixels.shape[:2], len(METADATA)), dtype=np.float32)
        for i, j in np.ndindex(out.shape[:2]):
            height, width = cuts.sizes[i]
            numbers = describe(cuts.pixels[i, j])
            numbers |= {"original_width": float(width), "original_height": float(height)}
            out[i, j] = [numbers[name] for name in METADATA]
        return {self.names[0]: out}


@dataclass(frozen=True, kw_only=True)
class LabelRun:
    """What a run of `pseudolabel` cuts and how it is laid out."""

    num_crops: int = 1
    policy: CropPolicy = field(default_factory=lambda: CropPolicy(scale=(0.35, 1.0)))
    seed: int = 0
    shard_size: int = 256

    def __post_init__(self) -> None:
        """Refuses empty runs."""
        check_most(10_000, num_crops=self.num_crops, shard_size=self.shard_size)
        if self.num_crops < 1 or self.shard_size < 1:
            raise ConfigError(f"num_crops and shard_size must be at least 1, got {self}")


def pseudolabel(
    records: Sequence[Record],
    labellers: Sequence[Labeller],
    out: Path,
    *,
    run: LabelRun | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[Skipped, ...]:
    """Writes the labels of all records to `out/<label>/shard-00000.npz`, what is missing alone.

    Each file holds `ids`, `values` [B, n, ...] and a hash of each photo, `content`; the crops stand
    in `out/crop_settings`. A shard with a photo that was replaced is made again. Returns the photos
    that cannot be read, which have no labels.
    `progress` hears photos done and photos in all; `workers` shards are made at once, by threads.

    Raises:
        ConfigError: `out` was begun with other records, crops or seed, or a label by another
            source; or labels that this run does not make are of photos that were replaced
        FourMError: no photo can be read
    """
    run = run or LabelRun()
    out = Path(out)
    claim(out, records, run)
    claim_labels(out, labellers)
    remove_leftovers(out / CROPS)
    starts = range(0, len(records), run.shard_size)
    parts = [records[start : start + run.shard_size] for start in starts]
    pool = ThreadPoolExecutor(max(workers, 1))
    left_out: list[Skipped] = []
    try:
        jobs = [
            pool.submit(_label_missing, part, labellers, out, number, run)
            for number, part in enumerate(parts)
        ]
        for done, job in enumerate(jobs, start=1):
            left_out += job.result()
            if progress is not None:
                progress(min(done * run.shard_size, len(records)), len(records))
    finally:  # after an error, shards that were not begun are not begun
        pool.shutdown(cancel_futures=True)
    check_some(records, left_out)
    return tuple(left_out)


def _label_missing(
    part: Sequence[Record], labellers: Sequence[Labeller], out: Path, number: int, run: LabelRun
) -> tuple[Skipped, ...]:
    shard = f"shard-{number:05d}.npz"
    now = digests(part)
    todo = [la for la in labellers if any(lacks(out / n / shard, now) for n in la.names)]
    if not todo and not lacks(out / CROPS / shard, now):
        return left_out_of(out / CROPS / shard)
    check_others(out, shard, [CROPS, *(n for labeller in todo for n in labeller.names)], now)
    return _label_shard(part, todo, out / shard, run, now)


def _label_shard(
    part: Sequence[Record], todo: Sequence[Labeller], path: Path, run: LabelRun, content: Digests
) -> tuple[Skipped, ...]:
    out, shard = path.parent, path.name
    cuts = cut_records(part, run)
    if not lacks(out / CROPS / shard, content):
        check_same(out / CROPS / shard, [r.id for r in cuts.records], cuts.left_out)
    if not cuts.records:
        return cuts.left_out
    noted = {"ids": np.array([r.id for r in cuts.records]), CONTENT: content}
    for labeller in todo:
        for name, values in labeller(cuts).items():
            write_npz(out / name / shard, {**noted, "values": values}, kept=KEPT)
    settings = np.stack([to_settings(c) for c in cuts.crops])
    note = {**noted, **note_of_left_out(cuts.left_out)}
    write_npz(out / CROPS / shard, {**note, "values": settings}, kept=KEPT)
    return cuts.left_out


def cut_records(records: Sequence[Record], run: LabelRun) -> Cuts:
    """Decodes and cuts some photos."""
    all_crops, sizes, pixels, left_out = [], [], [], []
    kept: list[Record] = []
    for record in records:
        image = opened(record)
        if isinstance(image, Skipped):
            left_out.append(image)
            continue
        rng = crop_rng(record.id, run.seed)
        crop = crops(image.height, image.width, run.num_crops, run.policy, rng)
        kept.append(record)
        all_crops.append(crop)
        sizes.append((image.height, image.width))
        pixels.append(np.stack([np.asarray(cut_image(image, c)) for c in crop]))
    found = np.stack(pixels) if kept else np.zeros((0, run.num_crops, 0, 0, 3), np.uint8)
    return Cuts(kept, all_crops, sizes, found, tuple(left_out))


def crop_rng(identity: str, seed: int) -> np.random.Generator:
    """The random numbers of one photo: they depend on its id and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
