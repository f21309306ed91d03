"""Photos with labels: a folder of classes, a folder with labels.jsonl, JSONL, Parquet or a tar.

What cannot be used is not dropped in silence: it is listed with its reason, and nothing usable at
all is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourm_lite.data.records import ENDINGS
from fourm_lite.data.sources import Record, read_caption_list, read_tars
from fourm_lite.errors import ConfigError, FourMError, UnknownNameError, suggest

LIST = "labels.jsonl"
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Skip:
    """A photo that was left out, and why."""

    id: str
    why: str


@dataclass(frozen=True)
class Photo:
    """One photo and the numbers of its classes; several only where labels are several."""

    record: Record
    classes: tuple[int, ...]


@dataclass(frozen=True)
class LabelledSet:
    """Photos of known classes.

    Units:
        classes: the names, in the order of their numbers
        skipped: what was left out
    """

    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    skipped: tuple[Skip, ...] = ()

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def labels(self) -> Tensor:
        """Class numbers int64[N]; with several labels a photo, 0 or 1 a class: float[N, K]."""
        if not self.multi_label:
            return torch.tensor([photo.classes[0] for photo in self.photos], dtype=torch.int64)
        out = torch.zeros(len(self), len(self.classes))
        for row, photo in enumerate(self.photos):
            out[row, list(photo.classes)] = 1.0
        return out

    @property
    def counts(self) -> Tensor:
        """Photos of each class, int64[K]."""
        found = Counter(number for photo in self.photos for number in photo.classes)
        return torch.tensor([found[number] for number in range(len(self.classes))])

    @property
    def fingerprint(self) -> str:
        """Tells this set, in this order, from others."""
        rows = [[p.record.id, *p.classes] for p in self.photos]
        text = json.dumps([self.classes, rows])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def rows(self, numbers: Iterable[int]) -> LabelledSet:
        """Some of the photos, in this order."""
        return replace(self, photos=tuple(self.photos[int(i)] for i in numbers))


@dataclass(frozen=True)
class Splits:
    """What is trained on, what chooses settings, and what is measured; `notes` say how it came."""

    train: LabelledSet
    val: LabelledSet
    test: LabelledSet | None
    notes: tuple[str, ...] = ()


def read_labelled(
    source: str | Path, *, split: str | None = None, classes: Sequence[str] | None = None
) -> LabelledSet:
    """The photos of a source, or of one of its splits.

    Args:
        source: a folder with labels.jsonl, a folder of classes, or a .jsonl, .parquet or .tar file
        split: "train", "val" or "test"; None takes everything
        classes: names that are known already, as those of a training set

    Raises:
        FourMError: nothing is there, no photo has a label, or a label is not one of `classes`
    """
    rows = _rows(Path(source))
    found = rows if split is None else [row for row in rows if is_of(row[0].split, split)]
    return _labelled(found, source, split, classes, _has_lists(rows))


def has_split(source: str | Path, split: str) -> bool:
    """Whether a source tells which photos are of this split."""
    return any(is_of(record.split, split) for record, _ in _rows(Path(source)))


def is_of(name: str, split: str) -> bool:
    """Whether a split's name is one of those that people give to "train", "val" or "test"."""
    if split not in SPLITS:
        raise UnknownNameError(f"a split is one of {list(SPLITS)}, got {split!r}")
    return name.lower() in SPLITS[split]


def _split_of(name: str) -> str:
    """What people's name for a split stands for, or "" where it is none."""
    return next((split for split in SPLITS if is_of(name, split)), "")


def read_training(source: str | Path) -> LabelledSet:
    """The photos of the split "train"; where there is none, those of no split that is known.

    Raises:
        FourMError: all photos are of other splits, or as `read_labelled`
    """
    rows = _rows(Path(source))
    return _labelled(_training(rows, source), source, "train", None, _has_lists(rows))


def _training(rows: Sequence[Row], source: str | Path) -> Sequence[Row]:
    found = [row for row in rows if is_of(row[0].split, "train")]
    found = found or [row for row in rows if not _split_of(row[0].split)]
    if rows and not found:
        raise FourMError(
            f"{source} names no photos to train on: all are of the splits "
            f"{sorted({r.split for r, _ in rows})}; call those of one 'train'"
        )
    return found


def _has_lists(rows: Sequence[Row]) -> bool:
    return any(isinstance(label, list) for _, label in rows)


def read_splits(source: str | Path, *, val_share: float = 0.1) -> Splits:
    """Training, validation and test photos of one source.

    Where the source names no validation photos, a share of each class is taken from the training
    photos by the hash of their ids; a class with one photo keeps it for training.
    """
    rows = _rows(Path(source))
    several = _has_lists(rows)
    named = {name: [r for r in rows if is_of(r[0].split, name)] for name in ("val", "test")}
    notes = []
    training = _training(rows, source)
    train = _labelled(training, source, "train", None, several)
    unread = len(rows) - len(training) - sum(map(len, named.values()))
    if unread:
        notes.append(f"{unread} photos of other splits than {', '.join(SPLITS)} were left out")
    lone = [train.classes[i] for i, n in enumerate(train.counts.tolist()) if n == 1]
    if lone:
        notes.append(f"{len(lone)} classes have one training photo only: {', '.join(lone)}")
    if len(train.classes) < 2:
        raise FourMError(
            f"{source} has photos of {len(train.classes)} class ({', '.join(train.classes)}); "
            "a classifier needs at least two"
        )
    if named["val"]:
        val = _labelled(named["val"], source, "val", train.classes, several)
    else:
        train, val = hold_out(train, val_share)
        notes.append(f"{len(val)} photos were held out of the training set for validation")
    test = None
    if named["test"]:
        test = _labelled(named["test"], source, "test", train.classes, several)
    return Splits(train, val, test, tuple(notes))


def hold_out(data: LabelledSet, share: float) -> tuple[LabelledSet, LabelledSet]:
    """Two parts, the second with a share of every class that has more than one photo.

    Raises:
        FourMError: no class has more than one
    """
    by_class: dict[int, list[int]] = {}
    for row, photo in enumerate(data.photos):
        by_class.setdefault(photo.classes[0], []).append(row)
    held: set[int] = set()
    for rows in by_class.values():
        rows.sort(key=lambda r: hashlib.sha1(data.photos[r].record.id.encode()).digest())
        held.update(rows[: min(len(rows) - 1, max(1, round(share * len(rows))))])
    if not held:
        raise FourMError(
            "every class has one photo, so none can be held out for validation; give a second "
            "photo of a class, or photos of the split 'val'"
        )
    kept = [row for row in range(len(data)) if row not in held]
    return data.rows(kept), data.rows(sorted(held))


def few_shots(data: LabelledSet, shots: int, seed: int) -> LabelledSet:
    """At most `shots` photos of every class, drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)
    taken: Counter[int] = Counter()
    rows = []
    for row in torch.randperm(len(data), generator=generator).tolist():
        number = data.photos[row].classes[0]
        if taken[number] < shots:
            taken[number] += 1
            rows.append(row)
    return data.rows(sorted(rows))


Row = tuple[Record, Any]


def _rows(source: Path) -> list[Row]:
    """Records with their labels as they are written: a name, a list of names, or None."""
    if source.is_dir() and (source / LIST).is_file():
        return _listed(source / LIST)
    if source.is_dir():
        return _from_folders(source)
    if source.suffix == ".tar" and source.is_file():
        return _from_tar(source)
    if source.is_file() and source.suffix in (".jsonl", ".parquet"):
        return _listed(source)
    raise FourMError(
        f"expected a folder of classes, a folder with {LIST}, or a .jsonl, .parquet or .tar file; "
        f"found none at {source}"
    )


def _listed(path: Path) -> list[Row]:
    records = read_caption_list(path)
    return [(r, r.fields.get("label", r.fields.get("labels"))) for r in records]


def _from_folders(root: Path) -> list[Row]:
    """`class/photo.jpg`, or `train/class/photo.jpg` and so on."""
    folders = _folders(root)
    if not folders:
        raise FourMError(f"{root} holds neither {LIST} nor folders named for classes")
    others = [p.name for p in folders if not _split_of(p.name)]
    if len(others) == len(folders):
        return _from_classes(root, "")
    if others:
        raise FourMError(
            f"{root} holds folders of splits and others beside them ({', '.join(others[:5])}); "
            f"name those for a split too ({', '.join(SPLITS)}), or move them away"
        )
    return [row for p in folders for row in _from_classes(p, p.name)]


def _folders(root: Path) -> list[Path]:
    """Those that people made: not `.cache`, `__MACOSX` and the like."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _from_classes(root: Path, split: str) -> list[Row]:
    out: list[Row] = []
    for folder in _folders(root):
        for path in sorted(folder.rglob("*")):
            if path.suffix[1:].lower() in ENDINGS:
                name = path.relative_to(root).with_suffix("").as_posix()
                name = f"{split}/{name}" if split else name
                out.append((Record(name, path, (), split), folder.name))
    return out


def _from_tar(path: Path) -> list[Row]:
    """`key.jpg` with `key.cls` or `key.json` beside it; or `class/photo.jpg`."""
    out: list[Row] = []
    for sample in read_tars({"photo": path}):
        image = next((d for e, d in sample.files.items() if e.lower() in ENDINGS), None)
        image = sample.files.get("photo") if image is None else image
        if image is None:
            continue
        folder = sample.key.rpartition("/")[0].rpartition("/")[2]
        label = _label_in(sample.files, path, sample.key)
        out.append((Record(sample.key, image), folder if label in (None, "") else label))
    return out


def _label_in(files: Mapping[str, bytes], path: Path, key: str) -> Any:
    for ending in ("cls", "txt"):
        if ending in files:
            return files[ending].decode(errors="replace").strip()
    if "json" not in files:
        return None
    try:
        value = json.loads(files["json"])
        return value.get("label", value.get("labels"))
    except (ValueError, AttributeError) as error:
        raise FourMError(f"{path}: the JSON of {key!r} is not an object: {error}") from error


def _labelled(
    rows: Sequence[Row],
    source: str | Path,
    split: str | None,
    classes: Sequence[str] | None,
    several: bool,
) -> LabelledSet:
    where = f"{source}" + (f", split {split!r}," if split else "")
    if not rows:
        raise FourMError(f"{where} holds no photos; check the folder and its splits")
    named = [(record, _names(label)) for record, label in rows]
    skipped = [Skip(r.id, "it has no label") for r, names in named if not names]
    named = [(record, names) for record, names in named if names]
    if not named:
        raise FourMError(
            f"none of the {len(rows)} photos of {where} has a label; every line needs a 'label' "
            "(a name, or a list of names)"
        )
    known = tuple(sorted({n for _, names in named for n in names}) if classes is None else classes)
    numbers = {name: number for number, name in enumerate(known)}
    for record, names in named:
        for name in names:
            if name not in numbers:
                raise ConfigError(
                    f"{where}: {record.id!r} is labelled {name!r}, which is none of the "
                    f"{len(known)} known classes.{suggest(name, known)}"
                )
    photos = tuple(Photo(r, tuple(numbers[n] for n in names)) for r, names in named)
    return LabelledSet(photos, known, several, tuple(skipped))


def _names(label: Any) -> tuple[str, ...]:
    """The class names of a label as it was written."""
    if label is None or label == "":
        return ()
    return tuple(str(x) for x in label) if isinstance(label, list) else (str(label),)
