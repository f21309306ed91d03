"""Items to generate from, each with a folder: read from a list, and written with their results.

A finished item of a list is taken as it is only where nothing that its result depends on changed:
the bytes of its files, the plan, and size and time of the files of the model and its tokenizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.files import alone, remove_leftovers, write_whole
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.names import check_name
from fourm_lite.reading.regular import budget, read_bytes, read_text

if TYPE_CHECKING:
    from fourm_lite.modalities.spec import Modality
    from fourm_lite.pipeline.pipeline import FourMPipeline

Job = tuple[Path, dict[str, Any]]
"""The folder and the values of an item."""
RESULT = "result.json"
"""What was asked for and what came of it; it is written last and makes an item count."""


def read_items(items: Path, out: Path) -> list[Job]:
    """The items of a JSONL file, each with a folder below `out`.

    Raises:
        ConfigError: an item cannot be read, or two items have one folder
    """
    jobs, lines = [], dict[Path, int]()
    text = read_text(items, most=budget().bytes)
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        folder, values = _item(items, number, line, out)
        if folder in lines:
            raise ConfigError(
                f"{items}: the items of lines {lines[folder]} and {number} would both be written "
                f"to {folder}; give them ids that differ in letters or digits"
            )
        lines[folder] = number
        jobs.append((folder, values))
    return jobs


def _item(source: Path, number: int, line: str, out: Path) -> Job:
    try:
        values = as_object(parse_json(line, "the line"), "the line")
    except FourMError as error:
        raise ConfigError(f"{source}, line {number}: {error}") from error
    name = str(values.pop("id", f"{number - 1:06d}"))
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "_"
    return out / check_name(safe, f"{source}, line {number}: the id"), values


def file_named(value: Any) -> Path | None:
    """The file that a value names, where there is one."""
    if not isinstance(value, str) or len(value) >= 4096:
        return None
    try:
        path = Path(value).expanduser()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # RuntimeError: "~5 people", a home of nobody
        return None


def values_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """Files as paths; anything else as it was written."""
    return {name: file_named(value) or value for name, value in item.items()}


def identity(
    model: str, plan: str | None, pipe: FourMPipeline, found: Mapping[str, Path]
) -> dict[str, Any]:
    """What the results of all items depend on besides the command line.

    Args:
        model: as it was asked for
        plan: likewise
        pipe: the model with its tokenizers
        found: where the tokenizers of this request lie

    Raises:
        ConfigError: the plan cannot be read
    """
    from fourm_lite.sampling.plan import Plan

    named = {n: s for n, s in pipe.tokenizers.sources.items() if isinstance(s, str | Path)}
    here = {n: s for n, s in named.items() if Path(s).expanduser().exists()}
    return {
        "plan": None if plan is None else repr(Plan.from_toml(plan)),
        "model": _stamps(model),
        "tokenizers": {name: _stamps(source) for name, source in sorted({**here, **found}.items())},
    }


def digests(item: Mapping[str, Any]) -> dict[str, str]:
    """The hash of each file of an item.

    Raises:
        ConfigError: a file cannot be read
    """
    files = {name: file for name, value in item.items() if (file := file_named(value))}
    return {n: hashlib.sha256(read_bytes(file)).hexdigest() for n, file in files.items()}


def _stamps(source: str | Path) -> dict[str, list[int]]:
    """Size and time of the files of a checkpoint; nothing where its name is all that is known."""
    from fourm_lite.io.hub import resolve

    try:
        place = resolve(source)
    except CheckpointError:
        return {}
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    stats = {file.name: file.stat() for file in files if file.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def finished(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result that is there already, if it answers the same request."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("request") == asked else None


def write_item(
    folder: Path,
    item: Mapping[str, Any],
    values: Mapping[str, Any],
    asked: Mapping[str, Any],
    inputs: Iterable[Modality] = (),
) -> dict[str, Any]:
    """Writes the files of one item; result.json comes last and makes them count.

    `inputs`: of the model, which say what its tiles look like.
    """
    shown = {name: _shown(name, value, inputs) for name, value in item.items()}
    with alone(folder, wait=True):  # files of two requests must not stand side by side
        remove_leftovers(folder)
        return _write_item(folder, shown, values, asked)


def _shown(name: str, value: Any, inputs: Iterable[Modality]) -> Any:
    """What a person looks at of a given value: a picture, or a text."""
    from fourm_lite.modalities.codecs import tile_codec
    from fourm_lite.modalities.pictures import decode
    from fourm_lite.pipeline.readers import find_modality

    photo = file_named(value)
    if photo is None:
        return str(value)
    entries = {m.name: m for m in inputs}
    try:
        tiles = tile_codec(entries[find_modality(name, entries, role="input")])
        return decode(photo) if tiles is None else tiles.picture(tiles.read(read_bytes(photo)))
    except FourMError:
        return photo.name


def _write_item(
    folder: Path, given: Mapping[str, Any], values: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    from fourm_lite.modalities.pictures import png
    from fourm_lite.show.contact_sheet import Cell, contact_sheet

    cells, outputs = [], {}
    for name, shown in given.items():
        cells.append(Cell(f"Given: {name}", shown))
    for name, result in values.items():
        stem = name.replace("@", "_").replace("/", "_")
        is_text = isinstance(result.picture, str)
        file = f"{stem}.txt" if is_text else f"{stem}.png"
        write_whole(folder / file, result.picture.encode() if is_text else png(result.picture))
        outputs[name] = {**result.to_json(), "file": file}
        ending, arrays = _arrays(result)
        if arrays is not None:
            write_whole(folder / f"{stem}{ending}", arrays)
            outputs[name]["array"] = f"{stem}{ending}"
        cells.append(Cell.of(result))
    write_whole(folder / "sheet.png", png(contact_sheet(cells)))
    result = {"request": dict(asked), "outputs": outputs, "sheet": "sheet.png"}
    write_whole(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False))
    return result


def _arrays(result: Any) -> tuple[str, bytes | None]:
    """The ending and the content of a file of numbers that no picture holds."""
    import io

    import numpy as np

    value, file = result.value, io.BytesIO()
    if result.is_measured and isinstance(
        value, Mapping
    ):  # parts of a value: an image with its bands, a spectrum
        parts: dict[str, Any] = {name: np.asarray(part) for name, part in value.items()}
        np.savez_compressed(file, **parts)
        return ".npz", file.getvalue()
    if result.is_measured and isinstance(value, np.ndarray):
        np.save(file, value)
        return ".npy", file.getvalue()
    return ".npy", _features(value)


def _features(value: Any) -> bytes | None:
    """The .npy file of vectors and feature maps, which no picture holds."""
    import numpy as np
    import torch

    from fourm_lite.modalities.array_codecs import FeatureCodec

    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return None
    is_picture = value.ndim == 3 and value.shape[0] in (1, 3)
    return None if is_picture else FeatureCodec().write(torch.from_numpy(value))
