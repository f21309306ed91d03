"""Where tokenizers are named: by the user (`tokenizers=`), by a model's config, beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.io.checkpoint import Checkpoint
from fourm_lite.io.hub import is_hub_id, shipped
from fourm_lite.names import check_name, place_inside

TEXT = "text"
Sources = Mapping[str, Any]
Given = Sources | str | Path | Sequence[Any] | None
"""Name -> source, a folder of folders, "name=source", or several."""


def with_text(given: Given, text_tokenizer: str | Path | None) -> Given:
    """The same with another text tokenizer."""
    return given if text_tokenizer is None else [given, {TEXT: text_tokenizer}]


def read_given(given: Given) -> dict[str, Any]:
    """The sources that `tokenizers=` names, later ones in place of earlier ones.

    Raises:
        ConfigError: a word is neither a folder of tokenizers nor of the form name=source
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str | Path):
        return _of_word(given)
    return {name: source for part in given for name, source in read_given(part).items()}


def lasting(given: Given) -> list[str]:
    """The same as words that still work from another folder; open tokenizers are left out."""
    words = {n: s for n, s in read_given(given).items() if isinstance(s, str | Path)}
    places = {name: Path(source).expanduser() for name, source in words.items()}
    return [f"{n}={p.resolve() if p.exists() else words[n]}" for n, p in places.items()]


def _of_word(word: str | Path) -> dict[str, Any]:
    folder = Path(word).expanduser()
    if folder.is_dir():
        found: dict[str, Any] = dict(below(folder))
        if found:
            return found
        raise ConfigError(
            f"{folder} holds no folders of tokenizers; name a single one: NAME={word}, where NAME "
            "is a modality or 'text'"
        )
    name, equals, source = str(word).partition("=")
    if not (equals and name.strip() and source.strip()):
        raise ConfigError(
            "tokenizers are a folder that holds one folder for each tokenizer, or NAME=SOURCE (a "
            f"folder, file or hub id), such as depth=EPFL-VILAB/4M_tokenizers_depth_8k_224-448; "
            f"{str(word)!r:.200} is no folder and names none"
        )
    return {name.strip(): source.strip()}


def below(folder: Path | None) -> dict[str, Path]:
    """Sub-folders that hold a tokenizer, directly or under `weights/`."""
    if folder is None or not folder.is_dir():
        return {}
    found = {}
    for child in sorted(folder.iterdir()):
        for place in (child, child / "weights"):
            if (place / "config.json").is_file() or (place / "tokenizer.json").is_file():
                found[child.name] = place
    return found


def named_by_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizers that a model's config names, as they stand there.

    Raises:
        ConfigError: it is no table of names
    """
    named, folder = checkpoint.extra.get("tokenizers", {}), checkpoint.folder
    if not isinstance(named, Mapping):
        raise ConfigError(f"'tokenizers' in the config of {folder} should be a table of names")
    return {check_name(n, f"a tokenizer in {folder}"): place for n, place in named.items()}


def resolved(folder: Path | None, place: Any) -> str | Path:
    """A tokenizer that a config names: beside the model, shipped, a hub id, or "4m".

    What lies elsewhere is not opened: the author of a config is not its user.

    Raises:
        ConfigError: it lies elsewhere
    """
    if folder is not None and isinstance(place, str) and (folder / place).exists():
        return place_inside(folder, place, "a tokenizer of a config (tokenizers= names others)")
    if isinstance(place, str):
        with contextlib.suppress(CheckpointError):
            return shipped(place)
        if place == "4m" or is_hub_id(place):
            return place
    raise ConfigError(
        f"the config in {folder} names the tokenizer {place!r:.80}, which is neither beside it nor "
        "shipped nor a hub id; say with tokenizers= where it is"
    )
