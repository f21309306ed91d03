"""What the manifest of an index may open: what ships, published 4M models, what the user named.

An index may come from anywhere, and its manifest names a model and tokenizers by path or hub id.
Those that `modalities.published` lists are known by their hub ids. What a user gives to a command
on this machine is written down, one name a line, in the folder of `FOURM_LITE_CACHE`; a manifest
that names anything else is told to whoever opens the index.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fourm_lite.embedders.load import FAMILIES
from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.io.hub import shipped
from fourm_lite.modalities.published import FAMILIES as PUBLISHED
from fourm_lite.tokenization.words.fetch import cache_folder

log = logging.getLogger(__name__)

FILE = "named_by_you.txt"
MAX_BYTES = 4 << 20


def allow(sources: Iterable[Any]) -> None:
    """Writes down what the user named: paths, hub ids and `hf:...`; open models are left out."""
    known = _known()
    texts = [s for s in _parts(list(sources)) if _is_text(s)]
    fresh = [n for s in texts if (n := _place(s)) not in known and "\n" not in n]
    if not fresh:
        return
    file = cache_folder() / FILE
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
    text = str(source)
    family, colon, rest = text.partition(":")
    if not (colon and family in FAMILIES):
        family, rest = "", text
    name = rest.partition("?")[0] if family else rest
    path = os.path.expanduser(name)
    return f"{family}:{os.path.realpath(path) if os.path.lexists(path) else name}"


def _known() -> set[str]:
    try:
        with (cache_folder() / FILE).open("rb") as file:
            return set(file.read(MAX_BYTES).decode("utf-8", "surrogateescape").splitlines())
    except OSError:
        return set()
