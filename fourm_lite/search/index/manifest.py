"""What an index is made of: the space of its vectors and where they came from.

One small JSON file beside the rows. A query that was made by another model would get an answer
that looks right and is wrong, so the manifest names its space and refuses every other one.
Written whole or not at all; works on a local folder and on an object-store address.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.files import remove_leftovers, write_whole
from fourm_lite.io.locks import alone
from fourm_lite.io.recipe import from_dict
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.reading.regular import read_text

FILE = "manifest.json"
EMPTY = {FILE, "readers.lock"}
"""What an index holds before its first row."""
FORMAT = 1

Kind = Literal["vectors", "codes"]
Former = Callable[[str], Collection[str]]
OTHERWISE = (
    "these are other weights, or an earlier version fed the network other pixels than its library "
    "does: load what made the index, or build the index again"
)
"""Why a fingerprint may not fit, and what to do."""


def _none(name: str) -> Collection[str]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The provenance of an index; everything but ``space`` may be unknown.

    Units:
        ``width`` is the length of a vector, ``codebook_size`` the number of values of one code
        (it fixes how many bits a code takes in a codes-only index)
    """

    space: str
    kind: Kind = "vectors"
    width: int | None = None
    codebook_size: int | None = None
    model: str | None = None
    tokenizer: str | None = None
    preprocessing: Any = None
    licence: str | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not isinstance(self.space, str) or not self.space:
            raise ConfigError(
                f"an index needs the name of its space, got {self.space!r}; "
                "give the target of its vectors, such as space='tok_dinov2_global'"
            )
        if self.kind not in ("vectors", "codes"):
            raise ConfigError(f"kind is 'vectors' or 'codes', got {self.kind!r}")
        if self.format != FORMAT:
            raise ConfigError(
                f"this version reads index format {FORMAT}, the manifest says {self.format}; "
                "update fourm_lite or build the index again"
            )

    def require_space(self, space: str | None) -> None:
        """Refuses a query of another space and names both; ``None`` is not checked."""
        if space is not None and space != self.space:
            raise ConfigError(
                f"the index holds vectors of the space '{self.space}', the query is of "
                f"'{space}'; embed the query with target='{self.space}' or open another index"
            )

    def fits(self, name: str, value: str, former: Former = _none) -> bool:
        """Whether a fingerprint is that of the rows; one that either side lacks is not compared.

        Args:
            name: what it is of, such as "model"
            value: the fingerprint of today
            former: a name -> what earlier versions wrote for the same; asked where today's differs
        """
        ours = self.fingerprints.get(name)
        return ours is None or ours == value or ours in former(name)

    def require_fingerprints(self, fingerprints: Mapping[str, str], former: Former = _none) -> None:
        """Refuses a query whose model or preprocessing differs from that of the rows.

        Raises:
            ConfigError: a fingerprint does not fit, in today's form or in a former one
        """
        for name, value in fingerprints.items():
            if not self.fits(name, value, former):
                raise ConfigError(
                    f"the index was made with {name} {self.fingerprints[name]}, the query with "
                    f"{name} {value}; {OTHERWISE}"
                )

    def renewed(self, fingerprints: Mapping[str, str], former: Former = _none) -> Manifest:
        """The manifest with today's form of the fingerprints that it holds.

        Raises:
            ConfigError: as `require_fingerprints`
        """
        self.require_fingerprints(fingerprints, former)
        newer = {n: v for n, v in fingerprints.items() if n in self.fingerprints}
        return dataclasses.replace(self, fingerprints={**self.fingerprints, **newer})

    def to_json(self) -> str:
        """The text of the file."""
        try:
            return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
        except TypeError as error:
            raise ConfigError(f"a manifest holds only JSON values: {error}") from error


def is_remote(path: str) -> bool:
    """Whether the address names an object store (``s3://...``) instead of a folder."""
    return "://" in path


def read_manifest(path: str) -> Manifest | None:
    """The manifest of the index at ``path``, or ``None`` where there is no index."""
    text = _read_remote(path) if is_remote(path) else _read_local(Path(path))
    if text is None:
        return None
    try:
        fields = as_object(parse_json(text, f"{path}/{FILE}"), f"{path}/{FILE}")
        return from_dict(Manifest, fields)
    except FourMError as error:
        raise ConfigError(f"{path}/{FILE}: {error}; build the index again") from error


def create_manifest(path: str, manifest: Manifest) -> None:
    """Writes the manifest of a new index; of two processes that try at once, one does.

    Raises:
        ConfigError: there is an index already
        StorageError: see `write_manifest`
    """
    with nullcontext() if is_remote(path) else alone(path, wait=True):
        if read_manifest(path) is not None:
            raise ConfigError(f"there is an index at {path} already; open it or choose another")
        write_manifest(path, manifest)


def remove_rowless(path: str) -> None:
    """Takes an index away to which nobody has added a row; of another nothing is touched."""
    folder = Path(path)
    if is_remote(path) or {p.name for p in folder.iterdir()} - EMPTY:
        return
    with alone(folder, wait=True):
        if not {p.name for p in folder.iterdir()} - EMPTY:
            for name in EMPTY:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def write_manifest(path: str, manifest: Manifest) -> None:
    """Writes the manifest whole: a reader sees the old text or the new one, never a part.

    Raises:
        StorageError: the disk is full or not writable; the old manifest is still there
    """
    text = manifest.to_json()
    if is_remote(path):
        _write_remote(path, text)
        return
    remove_leftovers(Path(path))
    write_whole(Path(path) / FILE, text)


def _read_local(folder: Path) -> str | None:
    file = folder / FILE
    return read_text(file) if os.path.lexists(file) else None


def _read_remote(path: str) -> str | None:
    from pyarrow import fs

    with _reaching(path):
        system, root = fs.FileSystem.from_uri(path)
        name = f"{root}/{FILE}"
        if system.get_file_info(name).type != fs.FileType.File:
            return None
        with system.open_input_stream(name) as stream:
            return bytes(stream.read()).decode("utf-8")


def _write_remote(path: str, text: str) -> None:
    from pyarrow import fs

    with _reaching(path):
        system, root = fs.FileSystem.from_uri(path)
        system.create_dir(root, recursive=True)
        # An object store shows an object when its upload is complete: one put is atomic there.
        with system.open_output_stream(f"{root}/{FILE}") as stream:
            stream.write(text.encode("utf-8"))


@contextmanager
def _reaching(path: str) -> Iterator[None]:
    """What an object store and the way to it raise, as one error that says what to look at."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, FourMError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(
            f"the object store of {path} cannot be reached ({reason}); look at the address, the "
            "credentials and the network"
        ) from error
