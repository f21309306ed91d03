"""Where samples come from: caption lists (JSONL, Parquet), 4M's folders, and its tar shards.

A record names a photo and what is known of it; nothing is decoded before it is asked for.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.data.mixtures import KEY, Mix, mix_of
from fourm_lite.errors import ConfigError, FourMError, UnknownNameError, suggest
from fourm_lite.io.files import replacing
from fourm_lite.modalities.pictures import open_rgb


@dataclass(frozen=True)
class Record:
    """One photo with its captions, as a list of captions tells it.

    Units:
        image: a file, or its bytes; b"" where there is a caption and no photo
        fields: the other entries of its line, as they stand
        mix: what is mixed into the photo (`mixtures`), or None
    """

    id: str
    image: Path | bytes
    captions: tuple[str, ...] = ()
    split: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    mix: Mix | None = None

    @property
    def has_photo(self) -> bool:
        """Whether there is a photo, and not captions alone."""
        return self.image != b""

    def open_image(self) -> Any:
        """The photo, or the mixture, as an upright RGB PIL picture; see `pictures.open_rgb`.

        Raises:
            FourMError: it is not a readable picture
        """
        try:
            photo = open_rgb(
                self.image if isinstance(self.image, bytes) else self.image.read_bytes()
            )
            return photo if self.mix is None else self.mix.join(photo)
        except (OSError, FourMError) as error:
            raise FourMError(f"cannot read the picture of {self.id!r}: {error}") from error


def read_caption_list(
    path: Path,
    *,
    split: str | None = None,
    id_key: str = "id",
    image_key: str = "file",
    captions_key: str = "captions",
) -> list[Record]:
    """Records of a JSONL or Parquet file; picture paths are relative to the file.

    A caption entry may be one string or several; Parquet may hold the picture's bytes itself.

    Raises:
        FourMError: the file is missing or a line lacks a key
    """
    path = Path(path)
    if not path.is_file():
        raise FourMError(f"expected a caption list (.jsonl or .parquet), found no file at {path}")
    out = []
    for number, row in enumerate(_rows(path), start=1):
        if split is not None and row.get("split", "") != split:
            continue
        try:
            out.append(_record(row, path.parent, (id_key, image_key, captions_key)))
        except KeyError as error:
            key = str(error.args[0])
            raise FourMError(
                f"{path} row {number} has no key {key!r}, it has {sorted(row)}." + suggest(key, row)
            ) from None
    return out


def _record(row: Mapping[str, Any], folder: Path, keys: tuple[str, str, str]) -> Record:
    id_key, image_key, captions_key = keys
    image = row[image_key]
    if isinstance(image, Mapping):  # the form of Hugging Face's image columns
        image = image.get("bytes") or image["path"]
    captions = row.get(captions_key) or ()
    captions = (captions,) if isinstance(captions, str) else tuple(str(c) for c in captions)
    rest = {k: v for k, v in row.items() if k not in (*keys, "split", KEY)}
    where = image if isinstance(image, bytes) else folder / str(image)
    split, mix = str(row.get("split", "")), mix_of(row, folder)
    return Record(str(row[id_key]), where, captions, split, rest, mix)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise FourMError(f"{path} line {number} is not JSON: {error}") from error


@dataclass(frozen=True)
class Sample:
    """The files of one sample: modality -> bytes; `key` is its name without an ending."""

    key: str
    files: Mapping[str, bytes]


def read_folder(
    root: Path, folders: Mapping[str, str], *, strict: bool = True
) -> list[FolderEntry]:
    """The samples of 4M's layout `root/<folder>/<class>/<name>.<ending>`, by key.

    Units:
        folders: modality -> folder name (its `Modality.path`)
        strict: a sample that one modality lacks is an error; otherwise it is left out
    Raises:
        FourMError: a folder is missing, or (strict) the names differ
    """
    found: dict[str, dict[str, Path]] = {}
    for modality, name in folders.items():
        folder = Path(root) / name
        if not folder.is_dir():
            known = sorted(p.name for p in Path(root).glob("*") if p.is_dir())
            raise FourMError(f"'{modality}' expects the folder {folder}; {root} holds {known}")
        paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "."]
        found[modality] = {p.relative_to(folder).with_suffix("").as_posix(): p for p in paths}
    shared = set.intersection(*(set(f) for f in found.values())) if found else set()
    for modality, files in found.items():
        lone = sorted({k for other in found.values() for k in other} - set(files))
        if strict and lone:
            raise FourMError(
                f"'{modality}' lacks {len(lone)} samples that other modalities have, such as "
                f"{lone[0]!r}; add them, or pass strict=False to leave them out"
            )
    return [FolderEntry(k, {m: f[k] for m, f in found.items()}) for k in sorted(shared)]


@dataclass(frozen=True)
class FolderEntry:
    """One sample of a folder layout: modality -> path."""

    key: str
    paths: Mapping[str, Path]

    def read(self) -> Sample:
        """Its bytes."""
        return Sample(self.key, {m: p.read_bytes() for m, p in self.paths.items()})


_BRACKET = re.compile(r"\[([^\[\]]+)\]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
KEPT = "the finished shards are kept, and the same command goes on from them"


def expand_pattern(pattern: str) -> list[str]:
    """All names that a shard pattern stands for: `{000..011}` counts, shell wildcards are left.

    >>> expand_pattern("shard-{008..010}.tar")
    ['shard-008.tar', 'shard-009.tar', 'shard-010.tar']
    """
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    heads = [pattern[: match.start()] + str(n).zfill(len(first)) for n in numbers]
    return [head + tail for head in heads for tail in expand_pattern(pattern[match.end() :])]


def modality_paths(pattern: str) -> list[str]:
    """The aligned shards behind `root/[rgb,tok_depth]/shard.tar`, one for each name in brackets.

    >>> modality_paths("data/[rgb,caption]/s.tar")
    ['data/rgb/s.tar', 'data/caption/s.tar']
    """
    choices = [m.split(",") for m in _BRACKET.findall(pattern)]
    if len(choices) > 1:
        raise ConfigError(f"a shard pattern may have one pair of brackets, got {pattern!r}")
    if not choices:
        return [pattern]
    head, tail = _BRACKET.split(pattern)[::2]
    return [f"{head}{name.strip()}{tail}" for name in choices[0]]


def read_tars(paths: Mapping[str, Path]) -> Iterator[Sample]:
    """Samples of aligned tars, one a modality, read in lock-step.

    A single tar may hold several modalities; then its files are told apart by their endings and
    `paths` has one entry whose name is used for a lone file.

    Raises:
        FourMError: a tar is missing or broken, or the keys disagree
    """
    streams = {modality: _tar_groups(Path(path)) for modality, path in paths.items()}
    for row in itertools.zip_longest(*streams.values()):
        if any(group is None for group in row):
            raise FourMError(f"the shards {_names(paths)} differ in length; pack them again")
        keys = {group[0] for group in row if group is not None}
        if len(keys) > 1:
            raise FourMError(
                f"the shards {_names(paths)} disagree: keys {sorted(keys)} side by side"
            )
        files: dict[str, bytes] = {}
        for modality, group in zip(streams, row, strict=True):
            assert group is not None
            one = len(group[1]) == 1
            files |= {modality if one else ending: data for ending, data in group[1].items()}
        yield Sample(keys.pop(), files)


def _names(paths: Mapping[str, Path]) -> str:
    return ", ".join(str(p) for p in paths.values())


def _tar_groups(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    try:
        with tarfile.open(path) as tar:
            files = (m for m in tar if m.isfile())
            for key, members in itertools.groupby(files, key=lambda m: _split_key(m.name)[0]):
                group = {}
                for member in members:
                    handle = tar.extractfile(member)
                    assert handle is not None
                    group[_split_key(member.name)[1]] = handle.read()
                yield key, group
    except (OSError, tarfile.TarError) as error:
        raise FourMError(f"cannot read the shard {path}: {error}") from error


def _split_key(name: str) -> tuple[str, str]:
    """`a/b.seg.png` -> ("a/b", "seg.png"): a key ends at the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending


def write_tar(path: Path, samples: Iterable[tuple[str, bytes]]) -> None:
    """Writes named files to a tar, whole or not at all; the same bytes for the same files."""
    with replacing(path, kept=KEPT) as draft, tarfile.open(draft, "w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def choose_split(records: Sequence[Record], split: str) -> list[Record]:
    """The records of one split.

    Raises:
        UnknownNameError: no record is of that split
    """
    out = [r for r in records if r.split == split]
    if not out:
        known = sorted({r.split for r in records})
        raise UnknownNameError(f"no record is of the split {split!r}.{suggest(split, known)}")
    return out
