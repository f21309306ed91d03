"""A checkpoint on disk: its configuration, and its tensors without reading them.

Three layouts are one thing here: a folder with config.json and model.safetensors, the same in
shards with an index, and a single file whose metadata holds the configuration. Files are mapped,
never copied: only the tensors that are asked for are touched. Pickles are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fourm_lite.errors import CheckpointError
from fourm_lite.io.header import TensorInfo, read_header
from fourm_lite.io.hub import resolve
from fourm_lite.io.keys import check_keys, near
from fourm_lite.io.layout import Parts, find_parts
from fourm_lite.io.metadata import read_metadata
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.io.writing import write, write_sharded, write_single

__all__ = [
    "Checkpoint",
    "TensorInfo",
    "check_keys",
    "read",
    "write",
    "write_sharded",
    "write_single",
]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been read and whose tensors have not.

    `aliases` maps a name that was left out because it shared memory to the name that was kept.
    """

    source: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    licence: str | None
    files: Mapping[str, Path] = field(repr=False, default_factory=dict)

    def load(
        self,
        names: Iterable[str] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> dict[str, Tensor]:
        """The named tensors (all, without names), mapped from the file.

        An alias is answered with the tensor that was kept. Floating-point tensors are converted
        only when `dtype` asks for another type than the file's; integers keep theirs.

        Raises:
            CheckpointError: a name is not in the checkpoint, or a file changed since it was read
        """
        wanted = list(self.tensors) if names is None else list(names)
        by_file: dict[Path, list[str]] = defaultdict(list)
        for name in wanted:
            by_file[self._file_of(name)].append(name)
        found: dict[str, Tensor] = {}
        for path, group in by_file.items():
            found.update(self._load_from(path, group, dtype, device))
        return {name: found[name] for name in wanted}

    def has(self, name: str) -> bool:
        """Whether `load` can give a tensor of this name, be it under another one."""
        return self._kept(name) in self.tensors

    def _kept(self, name: str) -> str:
        return name if name in self.tensors else self.aliases.get(name, name)

    def _file_of(self, name: str) -> Path:
        kept = self._kept(name)
        if kept not in self.files:
            raise CheckpointError(
                f"{self.source} holds no tensor {name[:200]!r}.{near(name, self.tensors)}"
            )
        return self.files[kept]

    def _load_from(
        self,
        path: Path,
        names: list[str],
        dtype: torch.dtype | None,
        device: str | torch.device | None,
    ) -> dict[str, Tensor]:
        out = {}
        try:
            with safe_open(path, framework="pt", device="cpu") as file:  # maps, copies nothing
                for name in names:
                    value = file.get_tensor(self._kept(name))
                    wanted = dtype if dtype is not None and value.is_floating_point() else None
                    out[name] = value.to(device=device, dtype=wanted)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        return out


def read(source: str | Path) -> Checkpoint:
    """The checkpoint at a folder, a .safetensors file, a shipped name or a hub id.

    Raises:
        CheckpointError: nothing is there, a file is damaged, or it is a pickle
    """
    place = resolve(source)
    try:
        parts = find_parts(place)
    except PermissionError as error:
        raise CheckpointError(f"cannot read {place}: {error}") from error
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    for path in parts.weights:
        header = read_header(path)
        for name, info in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{place}: {name!r} stands in {files[name].name} and {path.name}"
                )
            tensors[name], files[name] = info, path
        metadata.update(header.metadata)
    parts.check_index(files)
    aliases, inner = read_metadata(metadata, tensors)
    config = _config(parts, inner)
    return Checkpoint(place, config, tensors, aliases, _licence(parts, config), files)


def _config(parts: Parts, inner: dict[str, Any]) -> dict[str, Any]:
    """config.json where there is one, else what the metadata holds."""
    pending = parts.pending_config
    if pending is not None:
        # A writer died after the new weights were in place and before the new config.json was.
        try:
            value = read_json_object(pending)
        except CheckpointError:
            value = None
        if value is not None and value == {**parts.index_config, **inner}:
            return value
    if parts.config is not None:
        return read_json_object(parts.config)
    config = {**parts.index_config, **inner}
    if not config:
        raise CheckpointError(
            f"{parts.place} holds no configuration: expected a config.json beside the weights, "
            "or metadata inside the file"
        )
    return config


def _licence(parts: Parts, config: Mapping[str, Any]) -> str | None:
    extra = config.get("extra")
    for table in (config, extra if isinstance(extra, Mapping) else {}):
        for key in ("licence", "license"):
            if isinstance(table.get(key), str):
                return str(table[key])
    return parts.licence()
