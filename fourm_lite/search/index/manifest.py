"""What an index is made of: the space of its vectors and where they came from.

One small JSON file beside the rows. A query that was made by another model would get an answer
that looks right and is wrong, so the manifest names its space and refuses every other one.
Written whole or not at all; works on a local folder and on an object-store address.

An index may come from anywhere, and its manifest names a model and tokenizers by path or hub id.
Opened are what ships, what `modalities.published` lists, and what the user named: that is written
down, one name a line, in the folder of `FOURM_LITE_CACHE`. Any other name is told to whoever opens
the index.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.files import alone, remove_leftovers, write_whole
from fourm_lite.io.hub import cache_folder, shipped
from fourm_lite.io.recipe import from_dict
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.modalities.published import FAMILIES as PUBLISHED
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
                f"the index holds vectors of the space '{self.space}'"
                + (f", made by '{self.model}'" if self.model else "")
                + f"; what is compared with them is of '{space}': leave the model out to ask by "
                f"the index's own, name one of that space (target='{self.space}'), or use another "
                "index"
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


def address_of(path: str | Path) -> str:
    """A folder, or the address of one in an object store, as text."""
    address = str(path)
    return address.rstrip("/") if is_remote(address) else str(Path(address).expanduser())


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
    """Removes an index without rows; any other is left as it is."""
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


log = logging.getLogger(__name__)

NAMED = "named_by_you.txt"
MAX_BYTES = 4 << 20


def allow(sources: Iterable[Any]) -> None:
    """Writes down what the user named: paths, hub ids and `hf:...`; open models are left out."""
    known = _known()
    texts = [s for s in _parts(list(sources)) if _is_text(s)]
    fresh = [n for s in texts if (n := _place(s)) not in known and "\n" not in n]
    if not fresh:
        return
    file = cache_folder() / NAMED
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8", errors="surrogateescape") as lines:
            lines.write("".join(f"{name}\n" for name in fresh))
    except OSError as error:
        log.debug("%s cannot be written (%s): names will be asked for again", file, error)


def require_allowed(source: Any, option: str) -> None:
    """Refuses what a manifest names and the user never did.

    Raises:
        ConfigError: it neither ships with fourm_lite, nor is a published 4M model or tokenizer, nor
            was given on this machine before
    """
    known = _known()
    if all(_is_text(s) and (_is_ours(s) or _place(s) in known) for s in _parts(source)):
        return
    raise ConfigError(
        f"the index names {str(source)[:200]!r}, which you have not used on this machine: an index "
        f"from elsewhere does not choose what is opened. If you trust it, say {option}"
    )


def _parts(source: Any) -> Iterator[Any]:
    """The sources of what `tokenizers=` takes: a word, name=source, or several of them."""
    if isinstance(source, list | tuple):
        for part in source:
            yield from _parts(part)
    elif isinstance(source, str) and not os.path.lexists(source):
        name, equals, rest = source.partition("=")
        yield rest if equals and name.replace("@", "_").isidentifier() else source
    elif source is not None:
        yield source


def _is_text(source: Any) -> bool:
    return isinstance(source, str | Path)


def _is_ours(source: str | Path) -> bool:
    """Whether a name ships or is published, and nothing of the current folder stands before it."""
    text = str(source)
    if text == "4m":
        return True
    try:
        return not os.path.lexists(text) and (_is_published(text) or bool(shipped(text)))
    except (CheckpointError, ValueError):
        return False


def _is_published(text: str) -> bool:
    return any(family.named(text) is not None for family in PUBLISHED.values())


def _place(source: str | Path) -> str:
    """One spelling for each place: options fall away, and links and `..` of paths."""
    from fourm_lite.embedders.load import FAMILIES  # torch comes with it, and facts need none

    text = str(source)
    family, colon, rest = text.partition(":")
    if not (colon and family in FAMILIES):
        family, rest = "", text
    name = rest.partition("?")[0] if family else rest
    path = os.path.expanduser(name)
    return f"{family}:{os.path.realpath(path) if os.path.lexists(path) else name}"


def _known() -> set[str]:
    try:
        with (cache_folder() / NAMED).open("rb") as file:
            return set(file.read(MAX_BYTES).decode("utf-8", "surrogateescape").splitlines())
    except OSError:
        return set()


def no_index(address: str) -> str:
    """Why nothing opens, and the command that makes what was meant."""
    there = f"there is no index at '{address}' (no manifest.json)"
    if Path(address).is_dir():
        return f"{there}, a folder of something else; `fourm-lite index {address} -o IDX` makes one"
    return f"{there}; make one with `fourm-lite index PHOTOS -o {address}` or Index.create"
