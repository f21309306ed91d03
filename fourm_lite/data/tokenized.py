"""Token shards from labels or photos: one set of crops for all tokenizers, resumable.

A shard of tokens holds the photos of one shard of labels, and a note beside it what these held: of
photos or labels that were replaced it is made again. A folder that was begun with other crops or
another tokenizer is refused, so what it holds belongs together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.data.label_rows import digests, has_note, note_of, write_note
from fourm_lite.data.labellers import unpack_edges
from fourm_lite.data.pseudolabel import LabelRun, read_note, with_crops
from fourm_lite.data.shards import CROPS, normalized, read_shard, token_path, write_shard
from fourm_lite.data.unread import left_out_of
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.files import alone, remove_leftovers, write_whole
from fourm_lite.modalities.crops import cut_image, from_settings, to_settings
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.records import Record
from fourm_lite.progress import Progress
from fourm_lite.reading.arrays import open_npz
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

Array = npt.NDArray[Any]
PHOTOS = ""
"""The label of a tokenizer that reads the photos themselves."""

FORMS: dict[str, Callable[[Array], Tensor]] = {
    "classes": lambda a: torch.from_numpy(a.astype(np.int64)),
    "edges": lambda a: torch.from_numpy(unpack_edges(a)).float()[:, None] * 2 - 1,
    "features": lambda a: torch.from_numpy(a.astype(np.float32)),
    "vectors": lambda a: torch.from_numpy(a.astype(np.float32)),
}
"""How a batch of stored labels becomes what a tokenizer reads."""


@dataclass(frozen=True)
class TokenJob:
    """A tokenizer, what it reads, and where its tokens go.

    Units:
        folder: of its shards, the `path` of the modality
        label: name of the label that it reads; `PHOTOS` for the pixels
    """

    tokenizer: VQTokenizer
    folder: str
    label: str = PHOTOS

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.tokenizer.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Part:
    """The photos of one shard and where each crop was cut.

    Shapes:
        settings: int64[n, crops, 5]
        labels: name -> [n, crops, ...], read when it is asked for
    Units:
        left_out: photos of the shard that cannot be read
    """

    number: int
    ids: Sequence[str]
    settings: Array
    labels: Callable[[str], Array]
    records: Mapping[str, Record] = field(default_factory=dict)
    left_out: tuple[Skipped, ...] = ()


def parts_of_labels(folder: Path, records: Sequence[Record] = ()) -> list[Part]:
    """The shards of a folder of `pseudolabel`; `records` are its photos, where pixels are wanted.

    Raises:
        FourMError: it is no such folder
    """
    paths = sorted((Path(folder) / CROPS).glob("shard-*.npz"))
    if not paths:
        raise FourMError(f"{folder} holds no labels; make them with `fourm-lite pseudolabel`")
    by_id = {r.id: r for r in records}
    out = []
    for path in paths:
        ids, settings = _npz(path)
        read = _label_reader(Path(folder), path.name)
        own = {i: by_id[i] for i in ids if i in by_id}
        out.append(Part(_number(path), ids, settings, read, own, left_out_of(path)))
    return out


def _number(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    if not digits.isdecimal():
        raise FourMError(f"shards of labels are named shard-00000.npz, got {path}")
    return int(digits)


def _label_reader(folder: Path, shard: str) -> Callable[[str], Array]:
    def read(name: str) -> Array:
        path = folder / name / shard
        if not path.is_file():
            known = sorted(p.name for p in folder.glob("*") if (p / shard).is_file())
            raise FourMError(f"expected the label {name!r} in {folder}, found {known}")
        return _npz(path)[1]

    return read


def _npz(path: Path) -> tuple[list[str], Array]:
    with open_npz(path) as data:
        ids, values = data.rows("ids", "values")
        return [str(i) for i in ids], values


def parts_of_photos(records: Sequence[Record], run: LabelRun) -> list[Callable[[], Part]]:
    """Photos without labels, cut as `pseudolabel` would cut them; each part opens its photos."""
    starts = range(0, len(records), run.shard_size)
    return [
        partial(_photo_part, number, records[start : start + run.shard_size], run)
        for number, start in enumerate(starts)
    ]


def _photo_part(number: int, records: Sequence[Record], run: LabelRun) -> Part:
    left_out: list[Skipped] = []
    part, rows = [], []
    for record, _, drawn in with_crops(records, run, left_out):
        part.append(record)
        rows.append(to_settings(drawn))
    settings = np.stack(rows) if rows else np.zeros((0, run.num_crops, 5), np.int64)
    by_id = {r.id: r for r in part}
    return Part(number, list(by_id), settings, _no_label, by_id, tuple(left_out))


def _no_label(name: str) -> Array:
    raise FourMError(
        f"photos hold no label {name!r}; make it with `fourm-lite pseudolabel` and give its folder"
    )


def tokenize_parts(
    parts: Iterable[Part | Callable[[], Part]],
    jobs: Sequence[TokenJob],
    out: Path,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> int:
    """Writes `out/<folder>/shard-00000.tar` for every job, what is missing alone; counts photos.

    Args:
        parts: parts, or what makes them when their turn comes
        jobs: what makes tokens
        out: the folder
        batch_size: crops that a tokenizer reads at once
        progress: told the photos that are done

    Raises:
        ConfigError: `out` was begun with other crops or another tokenizer
        FourMError: a label or a photo is missing
    """
    out = Path(out)
    _claim(out, jobs)
    seen = 0
    for one in parts:
        part = one() if callable(one) else one
        if not part.ids:
            continue
        _same_crops(out, part)
        notes = {label: _note(label, part) for label in {job.label for job in jobs}}
        for job in jobs:
            path, note = token_path(out, job.folder, part.number), notes[job.label]
            if path.is_file() and not has_note(path, note):
                path.unlink()  # before its note changes: a stop in between leaves nothing stale
            if not path.is_file():
                write_note(path, note)
                write_shard(path, part.ids, tokens_of(job, part, batch_size))
        seen += len(part.ids)
        if progress is not None:
            progress(seen, 0)
    return seen


def _note(label: str, part: Part) -> str:
    """Tells what a shard of tokens is made of; "" where that is not known any more."""
    if label != PHOTOS:
        return note_of(part.labels(label))
    found = digests([part.records[i] for i in part.ids if i in part.records])
    return note_of(found) if len(found) == len(part.ids) and all(found) else ""


def tokens_of(job: TokenJob, part: Part, batch_size: int = 64) -> Array:
    """Tokens of every crop of a part: int64[n, crops, L]."""
    count, num_crops = part.settings.shape[:2]
    device = job.tokenizer.quant_proj.weight.device
    read = _photo_values if job.label == PHOTOS else _label_values
    rows = [
        job.tokenizer.tokenize_flat(values.to(device)).cpu()
        for values in read(job, part, batch_size)
    ]
    return torch.cat(rows).view(count, num_crops, -1).numpy()


def _label_values(job: TokenJob, part: Part, batch_size: int) -> Iterator[Tensor]:
    stored = part.labels(job.label)
    flat = stored.reshape(-1, *stored.shape[2:])
    convert = FORMS[form_of(job.tokenizer, flat)]
    for start in range(0, len(flat), batch_size):
        yield convert(flat[start : start + batch_size])


def form_of(tokenizer: VQTokenizer, values: Array) -> str:
    """The name in `FORMS` of stored labels that a tokenizer reads."""
    if tokenizer.config.n_labels is not None:
        return "classes"
    if values.dtype == np.uint8:
        return "edges"
    return "vectors" if values.ndim == 2 else "features"


def _photo_values(job: TokenJob, part: Part, batch_size: int) -> Iterator[Tensor]:
    absent = [i for i in part.ids if i not in part.records]
    if absent:
        raise FourMError(
            f"the tokenizer of '{job.folder}' reads pixels, and {len(absent)} photos are not "
            f"there, such as {absent[0]!r}; give their folder or list (--photos)"
        )
    batch: list[Tensor] = []
    for i, settings in zip(part.ids, part.settings, strict=True):
        image = part.records[i].open_image()
        for crop in from_settings(settings, job.tokenizer.config.image_size):
            batch.append(_pixels(job.tokenizer, cut_image(image, crop)))
            if len(batch) == batch_size:
                yield torch.stack(batch)
                batch = []
    if batch:
        yield torch.stack(batch)


def _pixels(tokenizer: VQTokenizer, image: Any) -> Tensor:
    """A picture as the tokenizer reads it: in [-1, 1], or by ImageNet's mean and deviation."""
    return normalized(image) if tokenizer.config.undo_std else signed(image)


def signed(image: Any) -> Tensor:
    """A picture in [-1, 1]: float32[3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def _same_crops(out: Path, part: Part) -> None:
    path = token_path(out, CROPS, part.number)
    if not path.is_file():
        write_shard(path, part.ids, part.settings)
        return
    ids, settings = read_shard(path)
    if ids != list(part.ids) or not np.array_equal(settings, part.settings):
        raise ConfigError(
            f"{out} was begun with other photos or crops ({path.name} differs); choose another "
            "folder"
        )


def _claim(out: Path, jobs: Sequence[TokenJob]) -> None:
    """Notes which tokenizer made which folder."""
    path = out / "tokens.json"
    with alone(out, wait=True):
        known = read_note(path, begun=any(out.glob("*/shard-*.tar"))) or {}
        for job in jobs:
            mine = {"tokenizer": job.fingerprint, "label": job.label}
            if known.setdefault(job.folder, mine) != mine:
                raise ConfigError(
                    f"{out / job.folder} was made by another tokenizer or of another label "
                    f"({known[job.folder]}, now {mine}); choose another folder"
                )
        write_whole(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
        for folder in ("", CROPS, *(job.folder for job in jobs)):
            remove_leftovers(out / folder)
