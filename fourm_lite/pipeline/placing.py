"""Which modality a file is a value of, where nobody says it.

A picture that is given without a name is called `rgb`. For a model of tiles or arrays the bands of
a tile say what it is; where several modalities have as many, and for arrays, the folder in which
the file lies bears the name (`S1GRD/0.tif`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError, UnknownNameError
from fourm_lite.modalities.array_codecs import number_of_bands
from fourm_lite.modalities.codecs import tile_codec
from fourm_lite.modalities.plain_items import PICTURE
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.readers import find_modality
from fourm_lite.reading.regular import read_bytes

TILES, ARRAYS = (".tif", ".tiff"), (".npy", ".npz")


def placed(item: Mapping[str, Any], inputs: Iterable[Modality]) -> dict[str, Any]:
    """The item with a file that has no name of its own under that of its modality.

    Raises:
        ConfigError: it may be a value of several modalities, or of none
    """
    entries = {m.name: m for m in inputs}
    value = item.get(PICTURE)
    if not isinstance(value, str | Path) or Path(value).suffix.lower() not in (*TILES, *ARRAYS):
        return dict(item)
    name = _modality_of(Path(value), entries)
    if name in item:
        raise ConfigError(f"the item says '{name}' twice, the second time as {value}")
    return {name if key == PICTURE else key: v for key, v in item.items()}


def _modality_of(file: Path, entries: Mapping[str, Modality]) -> str:
    fitting = dict(entries)
    if file.suffix.lower() in TILES:
        count = number_of_bands(read_bytes(file))
        bands = {n: len(c.mean) for n, m in entries.items() if (c := tile_codec(m)) is not None}
        fitting = {n: m for n, m in entries.items() if bands.get(n) == count}
        if not fitting:
            have = ", ".join(f"{called(entries[n])} {have}" for n, have in bands.items())
            raise ConfigError(f"{file} has {count} bands, this model's modalities have {have}")
    named = _by_folder(file, fitting)
    pixels = [name for name, m in fitting.items() if m.kind == "pixels"]
    if named is None and len(pixels) != 1:
        raise ConfigError(
            f"{file} may be any of {', '.join(map(called, fitting.values()))}; say which: "
            'NAME=FILE in a query, {"NAME": "FILE"} in a list of items (.jsonl), or put files into '
            "folders of these names"
        )
    return named or pixels[0]


def _by_folder(file: Path, entries: Mapping[str, Modality]) -> str | None:
    """The nearest folder above that is called as one of the modalities."""
    for folder in file.absolute().parents:
        with suppress(UnknownNameError):
            return find_modality(folder.name, entries, role="input")
    return None


def called(entry: Modality) -> str:
    """What its users call a modality."""
    return entry.input_names[0].upper() if entry.input_names else entry.name
