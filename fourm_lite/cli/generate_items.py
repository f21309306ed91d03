"""The items of `fourm-lite generate`: read, given folders, and told apart by what they hold.

A finished item of --items is taken as it is only where nothing that its result depends on changed:
the bytes of its files, the plan, and size and time of the files of the model and its tokenizers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourm_lite.cli.output import require_folder
from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.names import check_name
from fourm_lite.reading.budget import budget
from fourm_lite.reading.regular import read_bytes, read_text

if TYPE_CHECKING:
    from fourm_lite.pipeline.pipeline import FourMPipeline

Job = tuple[Path, dict[str, Any]]
"""The folder and the values of an item."""


def read_jobs(inputs: Sequence[str], items: Path | None, out: Path) -> list[Job]:
    """What is to be generated from: the one item of --input, or those of --items.

    Raises:
        ConfigError: an item cannot be read, two items have one folder, or a folder cannot be made
    """
    if items is None:
        jobs = [(out, dict(_pair(text) for text in inputs))]
    elif inputs:
        raise ConfigError("give --input or --items, not both")
    elif not items.is_file():
        raise ConfigError(f"--items expects a JSONL file, got {items}")
    else:
        jobs = _of_lines(items, out)
    for folder, _ in jobs:
        require_folder(folder, "--out")
    return jobs


def _of_lines(items: Path, out: Path) -> list[Job]:
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


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"--input expects NAME=VALUE, such as rgb=photo.jpg; got {text!r}")
    return name, value


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
