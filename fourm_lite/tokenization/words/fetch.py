"""One public file, fetched once, checked against its hash and kept.

A file that is not what it should be is never stored. Nothing is fetched at import.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from fourm_lite.errors import FourMError, NotFetchedError
from fourm_lite.io.files import write_whole
from fourm_lite.io.hub import download_command, is_offline

log = logging.getLogger(__name__)

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
        if kept.is_file() and _digest(kept.read_bytes()) == remote.sha256:
            return kept
        content = _download(remote)
        write_whole(kept, content)
    except (OSError, HTTPException, ValueError) as error:
        raise _not_fetched(remote, folder, error) from error
    return kept


def _not_fetched(remote: RemoteFile, folder: Path, error: Exception) -> FourMError:
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


def _download(remote: RemoteFile) -> bytes:
    if is_offline() and _is_elsewhere(remote.url):
        raise URLError("HF_HUB_OFFLINE is set")
    log.info("fetching %s", remote.url)
    with urlopen(remote.url, timeout=TIMEOUT) as answer:
        content: bytes = answer.read(remote.max_bytes + 1)
    if _digest(content) != remote.sha256:
        raise URLError(
            f"its content is not the expected one (sha256 {_digest(content)[:12]}..., "
            f"expected {remote.sha256[:12]}...)"
        )
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
