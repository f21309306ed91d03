"""Samples of several modalities in tars, one a modality, as 4M's shards have them."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fourm_lite.errors import FourMError, ReadError
from fourm_lite.io.files import replacing
from fourm_lite.names import shown
from fourm_lite.reading.regular import budget
from fourm_lite.reading.tars import read_tar


@dataclass(frozen=True)
class Sample:
    """The files of one sample: modality -> bytes; `key` is its name without an ending."""

    key: str
    files: Mapping[str, bytes]


KEPT = "the finished shards are kept, and the same command goes on from them"


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
