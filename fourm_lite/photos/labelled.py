"""Photos with labels: a folder of classes, a folder with labels.jsonl, JSONL, Parquet or a tar.

What cannot be used is not dropped in silence: it is listed with its reason, and nothing usable at
all is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourm_lite.errors import ConfigError, FourMError, check_choice, suggest
from fourm_lite.photos.columns import in_class_order, is_missing, labels_of
from fourm_lite.photos.item import Skipped, is_tar, printable
from fourm_lite.photos.records import (
    CAPTIONS,
    Listing,
    Record,
    as_records,
    list_records,
    listing_file,
)
from fourm_lite.photos.sources import folder_items

LIST = "labels.jsonl"
HIDDEN = (".", "__")
Named = tuple[Record, tuple[str, ...]]
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
    rows = _rows(source)
    found = rows.photos if split is None else rows.of(split)
    return _labelled(found, source, split, classes, _has_lists(rows.photos), rows.skipped)


def has_split(source: str | Path, split: str) -> bool:
    """Whether a source has photos of this split."""
    return bool(_rows(source).of(split))


def is_of(name: str, split: str) -> bool:
    """Whether a split's name is one of those that people give to "train", "val" or "test"."""
    check_choice("a split", split, of=SPLITS)
    return name.lower() in SPLITS[split]


def _split_of(name: str) -> str:
    """What people's name for a split stands for, or "" where it is none."""
    return next((split for split in SPLITS if is_of(name, split)), "")


def read_training(source: str | Path) -> LabelledSet:
    """The photos of the split "train"; where there is none, those of no split that is known.

    Raises:
        FourMError: all photos are of other splits, or as `read_labelled`
    """
    rows = _rows(source)
    training = _training(rows.photos, source)
    return _labelled(training, source, "train", None, _has_lists(rows.photos), rows.skipped)


def _training(rows: Sequence[Row], source: str | Path) -> Sequence[Row]:
    found = [row for row in rows if is_of(row.record.split, "train")]
    found = found or [row for row in rows if not _split_of(row.record.split)]
    if rows and not found:
        raise FourMError(
            f"{source} names no photos to train on: all are of the splits "
            f"{sorted({row.record.split for row in rows})}; call those of one 'train'"
        )
    return found


def _has_lists(rows: Sequence[Row]) -> bool:
    return any(isinstance(row.label, list) for row in rows)


def read_splits(source: str | Path, *, val_share: float = 0.1) -> Splits:
    """Training, validation and test photos of one source.

    Where the source names no validation photos, a share of each class is taken from the training
    photos by the hash of their ids; a class with one photo keeps it for training.
    """
    rows = _rows(source)
    several = _has_lists(rows.photos)
    named = {name: rows.of(name) for name in ("val", "test")}
    notes = []
    training = _training(rows.photos, source)
    train = _labelled(training, source, "train", None, several, rows.skipped)
    unread = len(rows.photos) - len(training) - sum(map(len, named.values()))
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


@dataclass(frozen=True)
class Row:
    """A photo and its label as it is written: a name, several, or nothing."""

    record: Record
    label: Any


@dataclass(frozen=True)
class Rows:
    """The photos of a source and what it left out."""

    photos: tuple[Row, ...]
    skipped: tuple[Skip, ...] = ()

    def of(self, split: str) -> tuple[Row, ...]:
        """The photos of one split."""
        return tuple(row for row in self.photos if is_of(row.record.split, split))


def _rows(place: str | Path) -> Rows:
    source = Path(place).expanduser()
    if source.is_dir() and (source / LIST).is_file():
        return _listed(source / LIST)
    file = None if (source / CAPTIONS).is_file() else listing_file(source)
    if file is not None and file.exists():
        return _listed(file)
    if source.is_dir():
        return _from_folders(source)
    raise FourMError(
        f"expected a folder of classes, a folder with {LIST}, or a .jsonl, .parquet or .tar file; "
        f"found none at {source}"
    )


def _listed(path: Path) -> Rows:
    listing = list_records(path)
    own = _label_in_tar if is_tar(path.name) else _label_in
    rows = tuple(Row(r, own(r)) for r in listing.records)
    return Rows(rows, _skips(listing.skipped, path.parent))


def _label_in(record: Record) -> Any:
    return record.fields.get("label", record.fields.get("labels"))


def _label_in_tar(record: Record) -> Any:
    """That of .cls, .json, its folder or .txt, the first that says something."""
    told = record.fields
    more = told.get("json", {})
    folder = record.id.rpartition("/")[0].rpartition("/")[2]
    found = (told.get("cls"), more.get("label"), more.get("labels"), folder, told.get("txt"))
    return next((label for label in found if not is_missing(label) and label not in ("", [])), None)


def _skips(skipped: Iterable[Skipped], root: Path) -> tuple[Skip, ...]:
    start = f"{printable(str(root))}/"
    return tuple(Skip(one.uri.removeprefix(start), one.reason) for one in skipped)


def _from_folders(root: Path) -> Rows:
    """`class/photo.jpg`, or `train/class/photo.jpg` and so on."""
    names = [printable(p.name) for p in sorted(root.iterdir()) if p.is_dir() and not _is_hidden(p)]
    if not names:
        raise FourMError(f"{root} holds neither {LIST} nor folders named for classes")
    others = [name for name in names if not _split_of(name)]
    if others and len(others) < len(names):
        raise FourMError(
            f"{root} holds folders of splits and others beside them ({', '.join(others[:5])}); "
            f"name those for a split too ({', '.join(SPLITS)}), or move them away"
        )
    listing = as_records(folder_items(root, tars=False))
    return _by_folder(root, listing, depth=1 if others else 2)


def _by_folder(root: Path, listing: Listing, depth: int) -> Rows:
    """Photos whose folder, so far down, is their class; folders without photos are listed."""
    rows, skipped = [], list(_skips(listing.skipped, root))
    taken = Counter(record.id for record in listing.records)
    for record in listing.records:
        parts = record.id.split("/")
        if len(parts) <= depth or parts[depth - 1].startswith(HIDDEN):
            skipped.append(Skip(record.id, "it lies in no folder of a class"))
            continue
        split = parts[0] if depth == 2 else ""
        name = record.id if taken[record.id] == 1 else _with_ending(record)
        rows.append(Row(replace(record, id=name, split=split), parts[depth - 1]))
    full = {"/".join(row.record.id.split("/")[:depth]) for row in rows}
    for folder in sorted(root.glob("/".join("*" * depth))):
        name = printable(folder.relative_to(root).as_posix())
        if folder.is_dir() and not _is_hidden(folder) and name not in full:
            skipped.append(Skip(name, "the folder holds no photo that is read"))
    return Rows(tuple(rows), tuple(skipped))


def _with_ending(record: Record) -> str:
    assert isinstance(record.image, Path)
    return record.id + printable(record.image.suffix)


def _is_hidden(folder: Path) -> bool:
    """Whether people did not make it: `.cache`, `__MACOSX` and the like."""
    return folder.name.startswith(HIDDEN)


def _labelled(
    rows: Sequence[Row],
    source: str | Path,
    split: str | None,
    classes: Sequence[str] | None,
    several: bool,
    left_out: Sequence[Skip] = (),
) -> LabelledSet:
    where = f"{source}" + (f", split {split!r}," if split else "")
    if not rows:
        raise FourMError(f"{where} holds no photos; check the folder, or take every split (all)")
    named, skipped = _named(rows, where)
    if not named:
        raise FourMError(
            f"none of the {len(rows)} photos of {where} has a label; every line needs a 'label' "
            "(a name, or a list of names)"
        )
    known = in_class_order(n for _, names in named for n in names) if classes is None else classes
    numbers = {name: number for number, name in enumerate(known)}
    for record, names in named:
        for name in names:
            if name not in numbers:
                raise ConfigError(
                    f"{where}: {record.id!r} is labelled {name!r}, which is none of the "
                    f"{len(known)} known classes.{suggest(name, known)}"
                )
    photos = tuple(Photo(r, tuple(numbers[n] for n in names)) for r, names in named)
    return LabelledSet(photos, tuple(known), several, (*left_out, *skipped))


def _named(rows: Sequence[Row], where: str) -> tuple[list[Named], list[Skip]]:
    """The photos that have a label, each once.

    Raises:
        FourMError: two photos have one id
    """
    found: dict[str, Named] = {}
    skipped: list[Skip] = []
    for row in rows:
        try:
            names = labels_of(row.label)
        except ValueError as error:
            skipped.append(Skip(row.record.id, f"it {error}"))
            continue
        if not names:
            skipped.append(Skip(row.record.id, "it has no label"))
            continue
        first = found.setdefault(row.record.id, (row.record, names))
        if first[0] is row.record:
            continue
        if (first[0].image, first[1]) != (row.record.image, names):
            raise FourMError(
                f"{where.rstrip(',')}: the id {row.record.id!r} stands for two photos or labels "
                f"({first[1]} and {names}); give each photo an id of its own"
            )
        skipped.append(Skip(row.record.id, "it stands there twice"))
    return list(found.values()), skipped
