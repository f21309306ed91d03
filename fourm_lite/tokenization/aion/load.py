"""Opening AION-1's codecs, from a folder or beside a model: `codecs/NAME` of a checkpoint.

What a codec is follows from the keys of its config.json. (The package reads codecs from the Hub
only, and from aion-base whatever the model is.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError, UnknownNameError, suggest
from fourm_lite.modalities.forks import AION_MODALITIES, CODECS
from fourm_lite.tokenization.aion.images import read_field, read_image
from fourm_lite.tokenization.aion.scalars import read_catalog, read_scalar, read_scalars
from fourm_lite.tokenization.aion.spectra import read_spectrum
from fourm_lite.tokenization.vq.inputs import Tokenizer

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Source

Codec = Tokenizer[Any]


@dataclass(frozen=True)
class Kind:
    """One kind of codec: the config keys that only it has, and what opens it."""

    mark: str
    read: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Codec]


# A plain number has no key that others lack, so it stands last
KINDS: tuple[Kind, ...] = (
    Kind("quantizer_levels", read_image),
    Kind("encoder_depths", read_spectrum),
    Kind("levels", read_field),
    Kind("mask_value", read_catalog),
    Kind("num_quantizers", read_scalars),
    Kind("codebook_size", read_scalar),
)


def is_codec(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a codec of AION-1, not of a VQ tokenizer."""
    others = ("format", "class", "enc_type", "dec_type", "domains_in", "kind")
    return not any(key in config for key in others) and _kind(config) is not None


def _kind(config: Mapping[str, Any]) -> Kind | None:
    return next((kind for kind in KINDS if kind.mark in config), None)


def load_codec(source: Source) -> Codec:
    """The codec of a folder with config.json and model.safetensors.

    Raises:
        CheckpointError: files are missing, or a weight does not fit
        ConfigError: no known codec has such a config
    """
    from fourm_lite.io.checkpoint import read

    checkpoint = read(source)
    kind = _kind(checkpoint.config)
    if kind is None:
        raise ConfigError(
            f"'{checkpoint.source}' is no codec of AION-1: its config has "
            f"{sorted(checkpoint.config)}"
        )
    # a reservoir is what a table was computed from; nothing reads it afterwards
    names = [name for name in checkpoint.tensors if not name.endswith("_reservoir")]
    weights = checkpoint.load(names, dtype=torch.float32)
    try:
        return kind.read(checkpoint.config, weights)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        place = checkpoint.source
        raise CheckpointError(f"the codec '{place}' cannot be read: {error!r}") from error


class Codecs(Mapping[str, Codec]):
    """The codecs beside a model by modality, each opened when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._opened: dict[str, Codec] = {}

    def _folder(self, name: str) -> Path:
        entry = AION_MODALITIES.get(name)
        if entry is None or entry.tokenizer is None:
            raise UnknownNameError(
                f"AION-1 has no modality {name!r}.{suggest(name, AION_MODALITIES)}"
            )
        return self.root / entry.tokenizer

    def __getitem__(self, name: str) -> Codec:
        folder = self._folder(name)
        if not folder.is_dir():
            raise UnknownNameError(
                f"there is no codec of '{name}' at {folder}; codecs lie in codecs/ beside the model"
            )
        key = str(folder)
        if key not in self._opened:
            self._opened[key] = load_codec(folder)
        return self._opened[key]

    def __iter__(self) -> Iterator[str]:
        return (name for name in AION_MODALITIES if self._folder(name).is_dir())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load_codecs(source: str | Path) -> Codecs:
    """The codecs beside a model: a folder or hub id that holds `codecs/`.

    Raises:
        CheckpointError: there are none
    """
    from fourm_lite.io.hub import fetch_inside, is_hub_id, resolve

    if is_hub_id(source) and not Path(source).exists():
        root = fetch_inside(source, CODECS).parent
    else:
        root = resolve(source)
    found = Codecs(root if root.is_dir() else root.parent)
    if not len(found):
        raise CheckpointError(
            f"'{source}' holds no codecs; they lie in codecs/NAME beside the model"
        )
    return found
