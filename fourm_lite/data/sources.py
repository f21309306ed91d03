"""Where samples of several modalities come from: 4M's folders and its tar shards.

Records and caption lists are told of here too, under the name by which scripts import them.
"""

from __future__ import annotations

import io
import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fourm_lite.data.records import Record, choose_split, read_caption_list
from fourm_lite.errors import ConfigError, FourMError, ReadError, check_most
from fourm_lite.io.files import replacing
from fourm_lite.names import shown
from fourm_lite.reading.budget import budget
from fourm_lite.reading.regular import read_bytes
from fourm_lite.reading.tars import read_tar

__all__ = ["Record", "choose_split", "read_caption_list"]


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
        return Sample(self.key, {m: read_bytes(p) for m, p in self.paths.items()})


MAX_SHARDS = 1_000_000
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
    check_most(MAX_SHARDS, digits=len(last), shards=int(last[:12]) - int(first[:12]))
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
        for key, members in itertools.groupby(read_tar(path), key=lambda m: _split_key(m.name)[0]):
            group: dict[str, bytes] = {}
            for member in members:
                if member.refused:
                    raise FourMError(f"the shard {path}: {shown(member.name)}: {member.refused}")
                group[_split_key(member.name)[1]] = member.data
                if sum(map(len, group.values())) > budget().bytes:
                    raise FourMError(f"the sample {shown(key)} of the shard {path} is too large")
            yield key, group
    except ReadError as error:
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
