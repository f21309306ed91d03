"""A checkpoint on disk: its configuration, and its tensors without reading them.

Three layouts are one thing here: a folder with config.json and model.safetensors, the same in
shards with an index, and a single file whose metadata holds the configuration. Files are mapped,
never copied: only the tensors that are asked for are touched. Pickles are refused.

What a configuration promises is compared with the tensors before anything is built: one that
claims a billion blocks costs nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError, suggest
from fourm_lite.io.hub import resolve
from fourm_lite.io.layout import Parts, find_parts
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.io.weights_file import TensorInfo, WeightsFile, let_go, read_metadata
from fourm_lite.io.writing import write, write_single

__all__ = [
    "Checkpoint",
    "Source",
    "TensorInfo",
    "check_keys",
    "read",
    "write",
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
        moved = {}
        for name in wanted:
            moved[name] = value = _moved(found[name], dtype, device)
            if value is not found[name]:  # one after the other: never the whole file in memory
                let_go(found[name])
        return moved

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


SHOWN = 10
MAX_DEPTH = 1024
SEQUENCE_ROWS = 512  # every sequence and feature modality stores this many position rows
_BLOCK = re.compile(r"(encoder|decoder)\.([0-9]{1,6})\.")


def near(name: str, known: Iterable[str]) -> str:
    """`suggest` at a bounded cost, however many and however long the names are."""
    close = [k[:200] for k in known if abs(len(k) - len(name)) <= 4]
    return suggest(name[:200], close[:512])


def check_keys(
    expected: Iterable[str], found: Iterable[str], *, optional: Iterable[str] = ()
) -> None:
    """Compares tensor names; `optional` ones may be there or not.

    Raises:
        CheckpointError: names are missing or unexpected; the first ten are told, with near names
    """
    wanted, present, free = set(expected), set(found), set(optional)
    missing = sorted(wanted - present - free)
    unexpected = sorted(present - wanted - free)
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_listed(missing, unexpected)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {_listed(unexpected, missing)}")
    raise CheckpointError(
        "the weights do not fit the config "
        f"({len(wanted)} tensors expected, {len(present)} found): " + "; ".join(parts)
    )


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Compares a fourm config (our own form) with the shapes in the file, building nothing.

    What is missing in the file is not told here but by `check_keys`.

    Raises:
        ConfigError: a number is absurd
        CheckpointError: width, depth, a vocabulary or a position table differs from the file's
    """
    for side in ("encoder", "decoder"):
        _check_depth(side, config.get(f"{side}_depth"), tensors)
    dim = config.get("dim")
    _check_rows("the config key 'dim'", dim, tensors, "encoder_norm.weight")
    _check_rows("the config key 'dim'", dim, tensors, "mask_token", axis=2)
    _check_hidden(config, tensors)
    registers = config.get("num_register_tokens", 0)
    _check_rows("'num_register_tokens'", registers, tensors, "register_tokens", axis=1)
    if registers and "register_tokens" not in tensors:
        raise CheckpointError(f"the config has num_register_tokens={registers}, the file has none")
    for side, table in (("inputs", "encoder"), ("outputs", "decoder")):
        for entry in config.get(side, ()):
            check_modality(entry, f"{table}_embeddings.{entry.get('name')}", tensors)


def check_modality(
    entry: Mapping[str, Any], prefix: str, tensors: Mapping[str, TensorInfo]
) -> None:
    """Compares one modality's entry with its tensors.

    Raises:
        CheckpointError: the vocabulary, the number of positions or the channels differ
    """
    what = f"the modality '{entry.get('name')}'"
    kind = entry.get("kind")
    for table in ("token_emb", "to_logits"):
        label = f"vocab_size of {what}"
        _check_rows(label, entry.get("vocab_size"), tensors, f"{prefix}.{table}.weight")
    rows = SEQUENCE_ROWS if kind in ("sequence", "features") else entry.get("max_tokens")
    _check_rows(f"positions of {what}", rows, tensors, f"{prefix}.pos_emb", axis=1)
    channels = entry.get("channels")
    if kind == "features":
        _check_rows(f"channels of {what}", channels, tensors, f"{prefix}.emb_proj.weight", axis=1)
    patch = entry.get("patch_size")
    if kind == "pixels" and isinstance(channels, int) and isinstance(patch, int):
        values = channels * patch * patch
        _check_rows(
            f"values of a patch of {what}", values, tensors, f"{prefix}.proj.weight", axis=1
        )


def _check_rows(
    what: str, want: Any, tensors: Mapping[str, TensorInfo], name: str, *, axis: int = 0
) -> None:
    info = tensors.get(name)
    if info is None:
        return
    if len(info.shape) <= axis or info.shape[axis] != want:
        raise CheckpointError(
            f"{what} should be {want}, but {name!r} in the file has shape {list(info.shape)}; "
            "the config and the weights are of different models"
        )


def _check_depth(side: str, depth: Any, tensors: Mapping[str, TensorInfo]) -> None:
    if not isinstance(depth, int) or not 0 <= depth <= MAX_DEPTH:
        raise ConfigError(f"{side}_depth should be between 0 and {MAX_DEPTH}, got {depth!r:.40}")
    found = (_BLOCK.match(name) for name in tensors)
    blocks = {int(m.group(2)) for m in found if m and m.group(1) == side}
    if blocks and max(blocks) + 1 != depth:
        raise CheckpointError(
            f"the config has {side}_depth={depth}, the file holds blocks up to "
            f"{side}.{max(blocks)}; the config and the weights are of different models"
        )


def _check_hidden(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    dim, ratio = config.get("dim"), config.get("mlp_ratio", 4.0)
    try:
        hidden = int(dim * ratio)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"mlp_ratio should be a number, got {ratio!r:.40}") from None
    if config.get("gated_mlp"):
        hidden = int(2 * hidden / 3)
    for side in ("encoder", "decoder"):
        label = f"the hidden width (mlp_ratio={ratio}, gated_mlp={config.get('gated_mlp')})"
        _check_rows(label, hidden, tensors, f"{side}.0.mlp.fc1.weight")


def _listed(names: list[str], others: Collection[str]) -> str:
    shown = [f"{name[:200]!r}{near(name, others)}".rstrip(".") for name in names[:SHOWN]]
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + rest
