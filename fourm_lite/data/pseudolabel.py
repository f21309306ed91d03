"""Labels made by machines: what teachers and formulas give for each crop of each photo.

Resumable: a shard that is already written is not computed again, unless one of its photos was
replaced. Crops depend on the seed and the id of the photo alone, so a second run cuts the same
places. Shards are plain npz without pickle.

What a folder is made of is noted when it is begun, and compared when it goes on. A label notes its
source in its own folder, so that labels can be added one by one; labels that were made before
sources were noted have none, and go on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.data.label_rows import CONTENT, Digests, check_others, digests, lacks
from fourm_lite.data.labellers import Cuts, Labeller
from fourm_lite.data.shards import CROPS, KEPT
from fourm_lite.data.unread import check_same, check_some, left_out_of, note_of_left_out, opened
from fourm_lite.errors import ConfigError, FourMError, check_most
from fourm_lite.io.files import alone, remove_leftovers, write_json, write_npz
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.modalities.crops import CropPolicy, crops, cut_image, to_settings
from fourm_lite.modalities.spec import Crop
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.records import Record
from fourm_lite.progress import Progress

log = logging.getLogger(__name__)
RUN, SOURCE = "run.json", "source.json"
_PLAIN = (str, int, float, bool, type(None))
_SPEED = ("threads", "batch")


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
    all_crops, sizes, pixels = [], [], []
    kept: list[Record] = []
    left_out: list[Skipped] = []
    for record, image, crop in with_crops(records, run, left_out):
        kept.append(record)
        all_crops.append(crop)
        sizes.append((image.height, image.width))
        pixels.append(np.stack([np.asarray(cut_image(image, c)) for c in crop]))
    found = np.stack(pixels) if kept else np.zeros((0, run.num_crops, 0, 0, 3), np.uint8)
    return Cuts(kept, all_crops, sizes, found, tuple(left_out))


def with_crops(
    records: Sequence[Record], run: LabelRun, left_out: list[Skipped]
) -> Iterator[tuple[Record, Any, list[Crop]]]:
    """The photos that can be read, each with its crops; the others are added to `left_out`."""
    for record in records:
        image = opened(record)
        if isinstance(image, Skipped):
            left_out.append(image)
        else:
            rng = crop_rng(record.id, run.seed)
            yield record, image, crops(image.height, image.width, run.num_crops, run.policy, rng)


def crop_rng(identity: str, seed: int) -> np.random.Generator:
    """The random numbers of one photo: they depend on its id and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def claim(out: Path, records: Sequence[Record], run: LabelRun) -> None:
    """Notes what a folder of labels is made of.

    Raises:
        ConfigError: it was begun with other records, crops or seed
    """
    digest = hashlib.sha256("\n".join(r.id for r in records).encode()).hexdigest()
    mine = {"records": len(records), "ids_sha256": digest, "run": _plain(run)}
    path = out / RUN
    with alone(out, wait=True):
        remove_leftovers(out)
        theirs = read_note(path, begun=any(out.glob("*/shard-*.npz")))
        if theirs is None:
            write_json(path, mine)
        elif theirs != json.loads(json.dumps(mine)):
            raise ConfigError(
                f"{out} was begun with {theirs.get('records')} records and {theirs.get('run')}, "
                f"this run has {len(records)} and {mine['run']}; choose another folder"
            )


def read_note(path: Path, *, begun: bool) -> dict[str, Any] | None:
    """The note of what a folder is made of; None where there is none yet.

    Args:
        path: the note, a JSON object
        begun: there are shards that it belongs to; else a damaged note counts as none

    Raises:
        ConfigError: it is damaged
    """
    if not path.is_file():
        return None
    try:
        return read_json_object(path)
    except FourMError as error:
        if not begun:
            return None
        raise ConfigError(
            f"{path}, which says what its folder is made of, is damaged ({error}); if you know "
            "that this run has the same data and settings, remove that file and start again; else "
            "choose another folder"
        ) from error


def _plain(run: LabelRun) -> Any:
    policy = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(run.policy).items()}
    return {**vars(run), "policy": policy}


def claim_labels(out: Path, labellers: Sequence[Labeller]) -> None:
    """Notes what makes each label, in its folder.

    Raises:
        ConfigError: a label was begun by another source or with other settings
    """
    sources = {name: source_of(la, name) for la in labellers for name in la.names}
    begun = {name for name in sources if any((out / name).glob("shard-*.npz"))}
    with alone(out, wait=True):
        for name, mine in sources.items():
            theirs = read_note(out / name / SOURCE, begun=name in begun)
            if theirs not in (None, mine):
                raise ConfigError(
                    f"the label {name!r} in {out} was made by {theirs}, now it would be by {mine}; "
                    "give it another name or choose another folder"
                )
        for name, mine in sources.items():
            if name not in begun:
                write_json(out / name / SOURCE, mine)
            remove_leftovers(out / name)


def source_of(labeller: Labeller, name: str) -> dict[str, Any]:
    """The kind of a labeller and what decides one of its labels: files by a hash, plain settings.

    What only decides the speed is left out.
    """
    told: dict[str, Any] = {"kind": type(labeller).__name__}
    if not is_dataclass(labeller):
        return told
    for entry in fields(labeller):
        value = getattr(labeller, entry.name)
        if isinstance(value, Path):
            told[entry.name] = value.name
            told[f"{entry.name}_sha256"] = _digest(value) if value.is_file() else ""
        elif isinstance(value, Mapping):
            told |= {entry.name: value[name]} if isinstance(value.get(name), str) else {}
        elif isinstance(value, _PLAIN) and entry.repr and entry.name not in _SPEED:
            told[entry.name] = value
    return told


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
