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
from torch import Tensor

from fourm_lite.errors import CheckpointError
from fourm_lite.io.file_metadata import read_metadata
from fourm_lite.io.hub import resolve
from fourm_lite.io.keys import check_keys, near
from fourm_lite.io.layout import Parts, find_parts
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.io.tensor_info import TensorInfo
from fourm_lite.io.weights_file import WeightsFile
from fourm_lite.io.writing import write, write_sharded, write_single

__all__ = [
    "Checkpoint",
    "Source",
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
    files: Mapping[str, WeightsFile] = field(repr=False, default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder that holds the weights."""
        return self.source if self.source.is_dir() else self.source.parent

    @property
    def extra(self) -> Mapping[str, Any]:
        """What the config says about the model beyond its architecture."""
        extra = self.config.get("extra", {})
        return extra if isinstance(extra, Mapping) else {}

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
        by_file: dict[WeightsFile, list[str]] = defaultdict(list)
        for name in wanted:
            by_file[self._file_of(name)].append(self._kept(name))
        kept: dict[str, Tensor] = {}
        for file, group in by_file.items():
            kept.update(file.load(group))
        found = {name: kept[self._kept(name)] for name in wanted}
        return {name: _moved(value, dtype, device) for name, value in found.items()}

    def has(self, name: str) -> bool:
        """Whether `load` can give a tensor of this name, be it under another one."""
        return self._kept(name) in self.tensors

    def _kept(self, name: str) -> str:
        return name if name in self.tensors else self.aliases.get(name, name)

    def _file_of(self, name: str) -> WeightsFile:
        kept = self._kept(name)
        if kept not in self.files:
            raise CheckpointError(
                f"{self.source} holds no tensor {name[:200]!r}.{near(name, self.tensors)}"
            )
        return self.files[kept]


Source = str | Path | Checkpoint
"""A folder, a .safetensors file, a shipped name, a hub id, or a checkpoint that is open already."""


def read(source: Source) -> Checkpoint:
    """The checkpoint at a folder, a .safetensors file, a shipped name or a hub id.

    An open checkpoint is the answer itself: who needs several things of one file opens it once and
    hands it on.

    Raises:
        CheckpointError: nothing is there, a file is damaged, or it is a pickle
    """
    if isinstance(source, Checkpoint):
        return source
    place = resolve(source)
    try:
        parts = find_parts(place)
    except PermissionError as error:
        raise CheckpointError(f"cannot read {place}: {error}") from error
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, WeightsFile] = {}
    metadata: dict[str, str] = {}
    for path in parts.weights:
        file = WeightsFile(path)
        for name, info in file.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{place}: {name!r} stands in {files[name].path.name} and {path.name}"
                )
            tensors[name], files[name] = info, file
        metadata.update(file.metadata)
    parts.check_index({name: file.path for name, file in files.items()})
    aliases, inner = read_metadata(metadata, tensors)
    config = _config(parts, inner)
    return Checkpoint(place, config, tensors, aliases, _licence(parts, config), files)


def _moved(value: Tensor, dtype: torch.dtype | None, device: str | torch.device | None) -> Tensor:
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)


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
