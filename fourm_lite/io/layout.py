"""Which files of a place make up a checkpoint; an index can name no file outside the place."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.errors import CheckpointError, suggest
from fourm_lite.io.strict_json import as_object, parse_json, read_json_object
from fourm_lite.names import is_name

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SPREAD = "spread.safetensors"  # axes of queries, kept beside weights and never taken for them
PENDING = "config.json.next"  # written before the weights are renamed into place, see writing.py
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
MAX_SHARDS = 4096
MAX_README_BYTES = 1 << 20


@dataclass(frozen=True)
class Parts:
    """The files of one checkpoint."""

    place: Path
    config: Path | None
    weights: tuple[Path, ...]
    pending_config: Path | None = None
    shard_of: Mapping[str, str] = field(default_factory=dict)
    index_config: Mapping[str, Any] = field(default_factory=dict)

    def check_index(self, files: Mapping[str, Path]) -> None:
        """Compares the index with what the shards really hold.

        Raises:
            CheckpointError: a tensor is not where the index says, or not in the index
        """
        if not self.shard_of:
            return
        for name, shard in self.shard_of.items():
            found = files[name].name if name in files else "no shard"
            if found != shard:
                raise CheckpointError(
                    f"{self.place}: the index puts {name!r} into {shard}, it is in {found}"
                )
        extra = next((name for name in files if name not in self.shard_of), None)
        if extra is not None:
            raise CheckpointError(
                f"{self.place}: {extra!r} of {files[extra].name} is missing in the index."
                f"{suggest(extra, self.shard_of)}"
            )

    def licence(self) -> str | None:
        """The licence that the README or card beside the weights names."""
        return licence_at(self.place)


def find_parts(place: Path) -> Parts:
    """The files of the checkpoint at a folder or .safetensors file.

    Raises:
        CheckpointError: there are none, an index is wrong, or the weights are a pickle
    """
    if place.is_file():
        return _file_parts(place)
    config = place / CONFIG if (place / CONFIG).is_file() else None
    pending = place / PENDING if (place / PENDING).is_file() else None
    if (place / WEIGHTS).is_file():
        return Parts(place, config, (place / WEIGHTS,), pending)
    if (place / INDEX).is_file():
        shard_of, inner = _read_index(place)
        shards = tuple(place / shard for shard in sorted(set(shard_of.values())))
        return Parts(place, config, shards, pending, shard_of, inner)
    singles = sorted(file for file in place.glob("*.safetensors") if file.name != SPREAD)
    if len(singles) == 1 and singles[0].is_file():
        return Parts(place, config, (singles[0],), pending)
    raise CheckpointError(_nothing_in(place, singles))


def licence_at(place: Path) -> str | None:
    """The licence of a folder or file; of `weights/` the card stands in the folder above."""
    folder = place if place.is_dir() else place.parent
    found = licence_of(folder)
    return licence_of(folder.parent) if found is None and folder.name == "weights" else found


def licence_of(folder: Path) -> str | None:
    """The licence in the front matter of a folder's README.md or card.md, when it names one."""
    for readme in (folder / "README.md", folder / "card.md"):
        front = _front_matter(readme) if readme.is_file() else {}
        if "license" in front:
            other = front["license"] == "other" and "license_name" in front
            return front["license_name" if other else "license"]
    return None


def _front_matter(readme: Path) -> dict[str, str]:
    """The `key: value` lines between the two `---` at the head of a file."""
    with readme.open("rb") as file:
        lines = file.read(MAX_README_BYTES).decode("utf-8", "replace").splitlines()
    front: dict[str, str] = {}
    if not lines or lines[0].strip() != "---":
        return front
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and value.strip():
            front[key.strip()] = value.strip().strip("'\"")
    return front


def refuse_pickle(path: Path) -> CheckpointError:
    """The error for a pickled checkpoint, with the command that converts it."""
    return CheckpointError(
        f"expected a .safetensors file or a folder, got the pickle {path}: pickles can run code "
        f"and are never read. Convert it once with `fourm-lite convert {shlex.quote(str(path))} "
        f"-o OUT`, then write its {CONFIG} beside the result"
    )


def _file_parts(path: Path) -> Parts:
    if path.suffix in PICKLES:
        raise refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"expected a .safetensors file or a folder, got the file {path}")
    config = path.parent / CONFIG
    # hub folders are often named by their weights file; a single file of any other name is alone
    beside = path.name == WEIGHTS and config.is_file()
    return Parts(path, config if beside else None, (path,))


def _read_index(place: Path) -> tuple[dict[str, str], dict[str, Any]]:
    what = str(place / INDEX)
    index = read_json_object(place / INDEX)
    table = as_object(index.get("weight_map"), f"'weight_map' of {what}")
    if not table:
        raise CheckpointError(f"{what} names no tensors")
    for name, shard in table.items():
        if not is_name(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{what} should name .safetensors files of its own folder, "
                f"got {str(shard)[:80]!r} for {name[:80]!r}"
            )
    shards = sorted(set(table.values()))
    missing = [shard for shard in shards[:MAX_SHARDS] if not (place / shard).is_file()]
    if missing or len(shards) > MAX_SHARDS:
        raise CheckpointError(
            f"{what} names {len(shards)} shards, {len(missing)} of them are missing: "
            f"{', '.join(missing[:10])}; fetch the folder again"
        )
    return dict(table), _index_config(index.get("metadata"), what)


def _index_config(metadata: Any, what: str) -> dict[str, Any]:
    inner = metadata.get("config") if isinstance(metadata, dict) else None
    if not isinstance(inner, str):
        return {}
    return as_object(parse_json(inner, f"'config' of {what}"), f"'config' of {what}")


def _nothing_in(place: Path, singles: list[Path]) -> str:
    pickles = (
        sorted(p for p in place.iterdir() if p.suffix in PICKLES)[:1] if place.is_dir() else []
    )
    if pickles:
        return str(refuse_pickle(pickles[0]))
    found = f"found {len(singles)} other .safetensors files" if singles else "found no .safetensors"
    return f"{place} should hold {WEIGHTS} or {INDEX}: {found}"
