"""Items as people write them: a sentence, the name of a photo, {"text": ..., "image": ...}."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.pictures import SUFFIXES

TEXT, PICTURE = "caption", "rgb"
ALIASES = {"text": TEXT, "words": TEXT, "image": PICTURE, "photo": PICTURE, "picture": PICTURE}
"""What people and other libraries call the two modalities that they ask by most."""


def as_item(value: Any) -> dict[str, Any]:
    """A value as modality -> value: a sentence is a caption, a photo or its path is `rgb`.

    Raises:
        ConfigError: a photo's name where no file is, or nothing that an item can be
    """
    if isinstance(value, Mapping):
        return _named(value)
    if isinstance(value, str):
        return {PICTURE: Path(value)} if is_photo(value) else {TEXT: value}
    if isinstance(value, Path) or hasattr(value, "convert") or _is_pixels(value):
        return {PICTURE: value}
    raise ConfigError(
        "an item is a sentence, a photo (a path or a picture), or a dict of modalities and their "
        f"values, such as {{'rgb': 'photo.jpg'}}; got a {type(value).__name__}: {value!r:.80}"
    )


def as_items(inputs: Any) -> list[Mapping[str, Any]]:
    """The items of a request, one or a list of them, each as modality -> value.

    Raises:
        ConfigError: one is nothing that an item can be
    """
    many: Any = [inputs] if is_one_item(inputs) else inputs
    return [as_item(item) for item in many]


def is_one_item(inputs: Any) -> bool:
    """Whether it is one item, and no list of items."""
    alone = isinstance(inputs, (Mapping, str, bytes, Path)) or not isinstance(inputs, Iterable)
    return alone or hasattr(inputs, "shape")


def known_name(name: str) -> str:
    """The modality that a person's name stands for; one of that very name is itself.

    >>> known_name("image")
    'rgb'
    """
    return name if name in MODALITIES else ALIASES.get(name, name)


def _named(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item under the names of modalities."""
    out: dict[str, Any] = {}
    for name, value in item.items():
        known = known_name(name)
        if known in out:
            raise ConfigError(f"the item says '{known}' twice, as {list(item)}; leave one out")
        out[known] = value
    return out


def is_photo(text: str, *, as_words: str = "{'caption': ...}") -> bool:
    """Whether a text is the path of a photo.

    Args:
        text: what was given
        as_words: how the caller writes a text that only looks like a file's name

    Raises:
        ConfigError: it is the name of a photo, and no file is there
    """
    if "\n" in text or Path(text).suffix.lower() not in SUFFIXES:
        return False
    try:
        if Path(text).expanduser().is_file():
            return True
    except (OSError, RuntimeError):  # a name that no file can have; "~5.jpg", a home of nobody
        return False
    if " " in text.strip():
        return False  # "what is on photo.jpg" is a sentence
    raise ConfigError(
        f"there is no photo at {text!r}; check its folder and its name. If this is no file but "
        f"words, write {as_words}"
    )


def _is_pixels(value: Any) -> bool:
    """Whether it is an array of height x width x 3 bytes, as PIL and OpenCV give them."""
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return len(shape) == 3 and shape[-1] == 3 and str(getattr(value, "dtype", "")) == "uint8"
