"""Where things lie: from a name or path to a local folder or file, fetched where it is not here.

A shipped thing lies in `fourm_lite/assets/` of an installed wheel, or at the root of a source
checkout; no other file knows that. Of the hub only files that run no code are fetched; a single
public file is checked against its hash, and one that is not what it should be is never stored.
Nothing is fetched at import.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shlex
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeGuard
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from fourm_lite.errors import CheckpointError, FourMError, NotFetchedError, suggest
from fourm_lite.io.files import write_whole
from fourm_lite.io.layout import CONFIG, INDEX, WEIGHTS, licence_of

log = logging.getLogger(__name__)

SHELVES = ("tokenizers", "generation/models", "generation/plans", "generation")
_PACKAGE = Path(__file__).resolve().parents[1]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}\Z")
_HUB_PLACE = re.compile(rf"({_HUB_ID.pattern[:-2]})/(codecs/[A-Za-z0-9][\w.-]{{0,95}})\Z")
"""A codec in the repository of a model."""
WANTED = ["*.json", "*.safetensors", "README*", "LICENSE*"]
"""The files of a hub repository that are fetched: nothing that could run code."""


def resolve(source: str | Path) -> Path:
    """The local folder or file behind a path, a shipped name or a hub id ("owner/name").

    A path that exists comes first. Where a folder keeps its checkpoint in `weights/`, as those of
    `tokenizers/` do, that is the answer.

    Raises:
        CheckpointError: nothing of that name is here or on the hub
    """
    text = os.fspath(source)
    path = _expanded(text)
    if text.strip() and _exists(path):
        return _weights_of(path)
    if (place := _shipped_place(text)) is not None:
        return _weights_of(place)
    if isinstance(source, str) and is_hub_id(text):
        return _fetch(text)
    if isinstance(source, str) and (inner := _HUB_PLACE.match(text)):
        return fetch_inside(inner[1], inner[2])
    names = shipped_names()
    raise CheckpointError(
        f"found no checkpoint {text[:200]!r}: there is no such path, "
        f"{'nothing is shipped yet' if not names else 'it is not shipped with fourm_lite'}, "
        f"and it is no hub id of the form owner/name.{suggest(text, names)}"
    )


def is_hub_id(source: object) -> TypeGuard[str]:
    """Whether something is a text of the form of a hub id, "owner/name"."""
    return isinstance(source, str) and _HUB_ID.match(source) is not None


def assets() -> Path:
    """The folder that holds `tokenizers/` and `generation/`."""
    packed = _PACKAGE / "assets"
    return packed if packed.is_dir() else _PACKAGE.parent


def shipped(name: str) -> Path:
    """The folder or file that is shipped under a name, such as "mini" or "tokenizers/rgb".

    Raises:
        CheckpointError: nothing of that name is shipped
    """
    place = _shipped_place(name)
    if place is None:
        raise CheckpointError(
            f"nothing is shipped as {name[:200]!r} (looked in {assets()})."
            f"{suggest(name, shipped_names())}"
        )
    return place


def shipped_names() -> list[str]:
    """The names of what is shipped: folders of models and tokenizers, and recipes."""
    found: dict[str, None] = {}
    for shelf in SHELVES[:-1]:
        folder = assets() / shelf
        if folder.is_dir():
            found.update((p.name, None) for p in sorted(folder.iterdir()) if _is_thing(p))
    return list(found)


def _is_thing(path: Path) -> bool:
    return path.suffix == ".toml" or (path.is_dir() and not path.name.startswith((".", "_")))


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~nobody"
        return Path(text)


def _weights_of(place: Path) -> Path:
    inner = place / "weights"
    keeps = any((place / name).exists() for name in (CONFIG, WEIGHTS, INDEX))
    return inner if not keeps and inner.is_dir() else place


def _shipped_place(name: str) -> Path | None:
    parts = Path(name).parts
    if not parts or name.startswith(("/", "~", ".")) or ".." in parts or "\0" in name:
        return None
    candidates = [assets() / shelf / name for shelf in SHELVES if len(parts) == 1]
    if parts[0] in ("tokenizers", "generation") and len(parts) > 1:
        candidates.append(assets() / name)
    return next((place for place in candidates if _exists(place)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that the file system cannot hold
        return False


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def download_command(*sources: str) -> str:
    """The command that fetches something into the caches."""
    return shlex.join(["fourm-lite", "download", *sources])


def _fetch(hub_id: str) -> Path:
    """The local snapshot of a hub repository; the cache answers when there is no network."""
    from huggingface_hub import snapshot_download

    wanted: dict[str, Any] = {"allow_patterns": WANTED, "ignore_patterns": ["*/*"]}
    try:
        folder = Path(snapshot_download(hub_id, **wanted))
    except Exception as error:  # many kinds: HTTP, offline, missing repository, gated, a proxy
        with contextlib.suppress(Exception):  # a proxy's refusal does not look into the cache
            kept = Path(snapshot_download(hub_id, local_files_only=True, **wanted))
            if _is_whole(kept):
                return kept
        cause = "HF_HUB_OFFLINE is set" if is_offline() else _cause(error)
        raise _not_fetched(hub_id, cause) from error
    if not _is_whole(folder):
        raise _not_fetched(hub_id, f"{folder} holds a part of its files")
    log.info("%s: licence %s", hub_id, licence_of(folder) or "not stated")
    return folder


def fetch_inside(hub_id: str, folder: str) -> Path:
    """The local copy of one folder of a hub repository, with the folders in it.

    Raises:
        NotFetchedError: it is not here and cannot be fetched, or there is no such folder
    """
    from huggingface_hub import snapshot_download

    wanted = [f"{folder}/{pattern}" for pattern in ("*.json", "*.safetensors")]
    try:
        root = Path(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:  # many kinds, as in `_fetch`
        raise _not_fetched(f"{hub_id}/{folder}", _cause(error)) from error
    if not (root / folder).is_dir():
        raise _not_fetched(f"{hub_id}/{folder}", "the repository holds no such folder")
    return root / folder


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot holds weights, or is a text tokenizer; a link may lead to nothing."""
    return any(
        p.is_file() for p in (*folder.glob("*.safetensors"), *folder.glob("*tokenizer*.json"))
    )


def _cause(error: Exception) -> str:
    """The first line of an error of the hub; the others advise on its own interface."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"


def _not_fetched(hub_id: str, cause: str) -> NotFetchedError:
    return NotFetchedError(
        f"'{hub_id}' is neither a path here nor could it be fetched from the hub ({cause}). If the "
        "name is right, fetch it once where there is a network: "
        f"`{download_command(hub_id)}`; or give the path of a local folder. docs/published.md has "
        f"the names of 4M's models.{suggest(hub_id, shipped_names())}",
        hub_id,
        cause,
    )


CACHE_VARIABLE = "FOURM_LITE_CACHE"
TIMEOUT = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """Where a file lies and what it must hold.

    Units:
        max_bytes: more is refused before it is read
        source: what `fourm-lite download` calls it
        advice: what to do where there is no network, the end of the error message
    """

    name: str
    url: str
    sha256: str
    max_bytes: int = 16 << 20
    source: str | None = None
    advice: str = "download it yourself and pass its path"


ORIGINAL_TEXT_TOKENIZER = RemoteFile(
    name="text_tokenizer_4m_wordpiece_30k.json",
    url=(
        "https://raw.githubusercontent.com/apple/ml-4m/main/fourm/utils/tokenizer/trained/"
        "text_tokenizer_4m_wordpiece_30k.json"
    ),
    sha256="8e684e9a0673e39f70702a698869f909ba697f871a0c6b2a07b5f61e91b3526e",
    source="4m",
    advice="pass the path of the file instead: load_text_tokenizer('text_tokenizer.json')",
)


def cache_folder() -> Path:
    """Where fetched files are kept: FOURM_LITE_CACHE, or ~/.cache/fourm_lite."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "fourm_lite"


def fetch(remote: RemoteFile, cache: Path | None = None) -> Path:
    """The file in the cache, downloaded where it is missing or damaged.

    Raises:
        FourMError: there is no network, the file is not the expected one, or it cannot be stored
    """
    folder = cache or cache_folder()
    kept = folder / remote.name
    try:
        if kept.is_file() and _sha256(kept.read_bytes()) == remote.sha256:
            return kept
        content = _downloaded(remote)
        write_whole(kept, content)
    except (OSError, HTTPException, ValueError) as error:
        raise _file_not_fetched(remote, folder, error) from error
    return kept


def _file_not_fetched(remote: RemoteFile, folder: Path, error: Exception) -> FourMError:
    """What to do where a file is not here; `fourm-lite download` where it knows the file."""
    told = f"cannot fetch {remote.name} from {remote.url} into {folder}: {error}"
    if remote.source is None:
        return FourMError(f"{told}; {remote.advice}")
    return NotFetchedError(
        f"{told}. Fetch it once where there is a network: `{download_command(remote.source)}`; or "
        f"{remote.advice}",
        remote.source,
        str(error),
    )


def _is_elsewhere(url: str) -> bool:
    return urlsplit(url).hostname not in (None, "localhost", "127.0.0.1", "::1")


def _downloaded(remote: RemoteFile) -> bytes:
    if is_offline() and _is_elsewhere(remote.url):
        raise URLError("HF_HUB_OFFLINE is set")
    log.info("fetching %s", remote.url)
    with urlopen(remote.url, timeout=TIMEOUT) as answer:
        content: bytes = answer.read(remote.max_bytes + 1)
    if _sha256(content) != remote.sha256:
        raise URLError(
            f"its content is not the expected one (sha256 {_sha256(content)[:12]}..., "
            f"expected {remote.sha256[:12]}...)"
        )
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
