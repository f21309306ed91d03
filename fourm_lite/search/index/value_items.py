"""Items of modalities and values as a stream, as `photos.sources` gives photos.

They come from lists (JSON lines of modality and value) and from folders, where a file is one value:
its modality is the name of a folder above it, or follows from what the file holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.names import is_inside
from fourm_lite.photos.item import (
    LINE_ENDINGS,
    HeldContent,
    Item,
    Skipped,
    Stream,
    is_picture,
    printable,
    suffix_of,
)
from fourm_lite.photos.lists import json_rows
from fourm_lite.photos.sources import prefixed
from fourm_lite.photos.table_rows import ID_COLUMNS
from fourm_lite.search.space import PICTURE

ARRAYS = (".npy", ".npz")


def open_value_sources(paths: Iterable[str | Path], *, prefix: str = "") -> Stream:
    """The items of lists and folders, one source after the other.

    Args:
        paths: .jsonl lists of items, folders of tiles (GeoTIFF) and arrays, single files
        prefix: put before every id

    Raises:
        ConfigError: a path is not there or of a kind that is not read; said before the first item
    """
    places = [Path(path).expanduser().absolute() for path in paths]
    for place in places:
        name = place.name.lower()
        if not place.exists() or not (place.is_dir() or name.endswith(LINE_ENDINGS) or _is(place)):
            raise ConfigError(
                f"{place} is no source of items; give a list (.jsonl of modality and value), a "
                "folder of GeoTIFF tiles or .npz arrays, or one such file"
            )
    return prefixed((item for place in places for item in _items(place)), prefix)


def _items(place: Path) -> Iterator[Item | Skipped]:
    if place.name.lower().endswith(LINE_ENDINGS):
        yield from listed_items(place)
    elif place.is_dir():
        for file in sorted(p for p in place.rglob("*") if p.is_file() and _is(p)):
            yield _file_item(file, file.relative_to(place).as_posix())
    else:
        yield _file_item(place, place.name)


def _is(file: Path) -> bool:
    return is_picture(file.name) or suffix_of(file.name) in ARRAYS


def _file_item(file: Path, name: str) -> Item:
    """A file under the name of a picture, whatever it turns out to hold."""
    status = file.stat()
    values = {PICTURE: [str(file), status.st_size, status.st_mtime_ns]}
    content = HeldContent(json.dumps(values).encode())
    return Item(printable(name), printable(str(file)), content)


def listed_items(place: Path) -> Stream:
    """The items of a list (JSON lines of modality and value); their bytes are JSON."""
    for row in json_rows(place):
        if isinstance(row, Skipped):
            yield row
            continue
        number, fields = row
        key = next((k for k in ID_COLUMNS if isinstance(fields.get(k), str | int)), "")
        name = str(fields[key]) if key else f"{place.name.split('.')[0]}/{number}"
        values = {k: _given(place.parent, v) for k, v in fields.items() if k != key}
        uri = f"{printable(str(place))}:{number}"
        yield Item(name, uri, HeldContent(json.dumps(values).encode()))


def _given(folder: Path, value: Any) -> Any:
    """A value; the name of a file below the list's folder with what tells it from another one."""
    if not isinstance(value, str) or not 0 < len(value) < 4096 or not is_inside(value):
        return value
    file = folder / value
    try:
        status = file.stat() if file.is_file() else None
    except (OSError, ValueError):
        return value
    return value if status is None else [str(file), status.st_size, status.st_mtime_ns]


def item_of(data: bytes) -> dict[str, Any]:
    """What an item's bytes hold: modality -> value, files as paths."""
    values = as_object(parse_json(data.decode(), "the item"), "the item")
    return {k: Path(v[0]) if isinstance(v, list) and len(v) == 3 else v for k, v in values.items()}
