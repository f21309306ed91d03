"""Lists of photos in text: JSON lines, and captions one a line.

A list is read line by line and every line stands for itself: one that is cut short, of another
encoding or no object is left out with its number, and the others are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fourm_lite.errors import FourMError, ReadError
from fourm_lite.io.strict_json import levels
from fourm_lite.photos.columns import without_nan
from fourm_lite.photos.item import Skipped, printable
from fourm_lite.reading.regular import SMALL, budget, lines_of, read_bytes, unzipped

MAX_DEPTH = 64

Row = tuple[int, dict[str, Any]]
"""The number of a line, from 1, and its object."""


def json_rows(path: Path) -> Iterator[Row | Skipped]:
    """The objects of a JSONL file and, in their place, the lines that hold none."""
    place = printable(str(path))
    try:
        for number, line in lines_of(path):
            if line is not None and number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line is not None and number == 1 and line.strip() == b"[":
                reason = "is one JSON array; a list holds one JSON object a line"
                yield Skipped(place, reason, _folder(path))
                return
            if line is not None and not line.strip():
                continue
            try:
                yield number, parse_row(line)
            except ValueError as error:
                yield Skipped(f"{place}:{number}", str(error), _folder(path))
    except ReadError as error:
        yield Skipped(place, str(error), _folder(path))


def _folder(path: Path) -> str:
    """What a line that is not understood may hide: any photo beside or below the list."""
    return printable(str(path.parent))


def parse_row(line: bytes | None) -> dict[str, Any]:
    """The object of one line; NaN in it is null.

    Raises:
        ValueError: it is not UTF-8, not JSON, no object, too deep, or holds half a character; or it
            is too long (None), or has more keys than a row may
    """
    if line is None:
        raise ValueError(f"is longer than {SMALL} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        row = json.loads(text)
    except RecursionError:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    _check_depth(row)
    if "\\ud" in text.lower():
        _check_characters(row)
    clean: dict[str, Any] = without_nan(row)
    return clean


def _check_depth(row: Mapping[str, Any]) -> None:
    keys = 0
    for number, level in enumerate(levels(row)):
        if number >= MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep")
        keys += sum(len(node) for node in level if isinstance(node, dict))
        if keys > budget().columns:
            raise ValueError(f"has {keys} keys or more, at most {budget().columns} are read")


def _check_characters(row: Mapping[str, Any]) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("holds a text that ends in the middle of a character") from error


def text_lines(path: Path) -> list[tuple[int, str] | Skipped]:
    r"""The lines of a .txt or .txt.gz file that hold something; ``\n`` alone ends a line.

    Raises:
        FourMError: the file cannot be read
    """
    try:
        data = unzipped(path) if path.name.lower().endswith(".gz") else read_bytes(path)
    except ReadError as error:
        raise FourMError(f"cannot read the captions: {error}") from error
    found: list[tuple[int, str] | Skipped] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 ({error.reason} at byte {error.start})"
            found.append(Skipped(f"{printable(str(path))}:{number}", reason))
            continue
        if text:
            found.append((number, text))
    return found
