"""Values in lists and tables: captions, labels, and what counts as nothing there.

A null, a NaN and an empty text say nothing. What is of another kind than was asked for is refused
with its reason, so that its row can be listed; nothing becomes the text of itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: null, or NaN where others have numbers.

    >>> [is_missing(v) for v in (None, float("nan"), "", 0)]
    [True, True, False, False]
    """
    return value is None or (isinstance(value, float) and math.isnan(value))


def without_nan(value: Any) -> Any:
    """The value with null in the place of each NaN, also inside of objects.

    >>> without_nan({"a": float("nan"), "b": {"c": float("nan")}, "d": 1})
    {'a': None, 'b': {'c': None}, 'd': 1}
    """
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    return None if is_missing(value) else value


def captions_of(value: Any) -> tuple[str, ...]:
    """The captions that a cell holds: a text, several, or none.

    >>> captions_of(["a dog", None, " "])
    ('a dog',)

    Raises:
        ValueError: it holds something else than texts
    """
    if is_missing(value):
        return ()
    found = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if is_missing(one):
            continue
        if not isinstance(one, str):
            raise ValueError(f"has a caption that is no text: {_told(one)}")
        if one.strip():
            found.append(one)
    return tuple(found)


def labels_of(value: Any) -> tuple[str, ...]:
    """The names of classes that a cell holds: one, several, or none.

    >>> labels_of("cat"), labels_of([3, None, 4.0]), labels_of(float("nan"))
    (('cat',), ('3', '4'), ())

    Raises:
        ValueError: it holds something else than texts and numbers
    """
    found = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if is_missing(one) or one == "":
            continue
        if not isinstance(one, str | int | float):
            raise ValueError(f"has a label that is neither a name nor a number: {_told(one)}")
        whole = isinstance(one, float) and one.is_integer()
        found.append(str(int(one)) if whole else str(one))
    return tuple(dict.fromkeys(found))


def in_class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names each once: by number where all are whole numbers, else by name.

    >>> in_class_order(["10", "9", "9"]), in_class_order(["10", "9", "cat"])
    (('9', '10'), ('10', '9', 'cat'))
    """
    each = set(names)
    if all(name.isascii() and name.removeprefix("-").isdigit() for name in each):
        return tuple(sorted(each, key=lambda name: (int(name), name)))
    return tuple(sorted(each))


def text_of(value: Any) -> str:
    """A cell that holds a name, such as a split; "" where it says nothing.

    Raises:
        ValueError: it holds a list or an object
    """
    if isinstance(value, list | tuple | Mapping):
        raise ValueError(f"has a name that is no text: {_told(value)}")
    return "" if is_missing(value) else str(value)


def _told(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}" + "..." * (len(text) > 60)
