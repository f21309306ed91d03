"""The tokenizers that belong to a model, each opened when it is first used."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fourm_lite.errors import CheckpointError, ConfigError, FourMError, suggest
from fourm_lite.io.checkpoint import Checkpoint
from fourm_lite.modalities.spec import Modality
from fourm_lite.names import check_name, place_inside
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.text import TextTokenizer, load_text_tokenizer
from fourm_lite.tokenization.vqvae import VQTokenizer

TEXT = "text"
Sources = Mapping[str, Any]


class Tokenizers:
    """Where each tokenizer lies; `vq(entry)` and `text()` open them once.

    Args:
        sources: name -> folder, file, hub id or an open tokenizer. A name is a modality, its
            stem, or the `tokenizer` of its entry; "text" is the text tokenizer.
        device: where the networks run
    """

    def __init__(self, sources: Sources, *, device: torch.device | str | None = None) -> None:
        self.sources = dict(sources)
        self._device = device
        self._vq: dict[str, VQTokenizer] = {}
        self._text: TextTokenizer | None = None

    @classmethod
    def find(
        cls,
        tokenizers: Sources | str | Path | None,
        model_folder: Path | None,
        named: Sources,
        *,
        device: torch.device | str | None = None,
    ) -> Tokenizers:
        """The tokenizers of a model: those given, else what its config names or lies beside it.

        Args:
            tokenizers: a mapping, or a folder with one sub-folder for each
            model_folder: where the model lies
            named: what the model's config says: name -> source
            device: where the networks run
        """
        given: Sources = tokenizers if isinstance(tokenizers, Mapping) else {}
        if isinstance(tokenizers, (str, Path)):
            folder = Path(tokenizers).expanduser()
            if not folder.is_dir():
                raise ConfigError(
                    f"tokenizers= expects a mapping or a folder that holds one folder for each "
                    f"tokenizer; {folder} is no folder"
                )
            given = below(folder)
        beside = below(model_folder and model_folder / "tokenizers")
        chosen = {n: _resolved(model_folder, p) for n, p in named.items() if n not in given}
        sources = {**beside, **chosen, **given}
        return cls(sources, device=device)

    def has(self, entry: Modality) -> bool:
        """Whether there is one for a grid."""
        return any(name in self.sources for name in _names(entry))

    def vq(self, entry: Modality) -> VQTokenizer:
        """The tokenizer of a grid.

        Raises:
            FourMError: there is none, or it is of another vocabulary
        """
        for name in _names(entry):
            if name in self.sources:
                return self._open(name, entry)
        raise FourMError(
            f"'{entry.name}' needs the tokenizer '{entry.tokenizer or entry.stem}', and none was "
            f"found. Pass tokenizers={{'{entry.tokenizer or entry.stem}': folder}}; known: "
            f"{sorted(self.sources) or 'none'}.{suggest(entry.stem, self.sources)}"
        )

    def _open(self, name: str, entry: Modality) -> VQTokenizer:
        if name not in self._vq:
            source = self.sources[name]
            opened = source if isinstance(source, VQTokenizer) else load_tokenizer(source)
            self._vq[name] = (opened.to(self._device) if self._device else opened).eval()
        tokenizer = self._vq[name]
        if tokenizer.vocab_size != entry.vocab_size:
            raise FourMError(
                f"'{entry.name}' has {entry.vocab_size} ids, the tokenizer {name!r} gives "
                f"{tokenizer.vocab_size}: it belongs to another model"
            )
        return tokenizer

    def text(self) -> TextTokenizer:
        """The text tokenizer.

        Raises:
            FourMError: there is none
        """
        if self._text is None:
            source = self.sources.get(TEXT)
            if source is None:
                raise FourMError(
                    "text needs a text tokenizer, and none was found. Pass "
                    "tokenizers={'text': 'tokenizer.json'}, or 'text': '4m' for the original's"
                )
            self._text = (
                source if isinstance(source, TextTokenizer) else load_text_tokenizer(source)
            )
        return self._text

    @property
    def has_text(self) -> bool:
        """Whether there is a text tokenizer."""
        return TEXT in self.sources


def named_by_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizers that a model's config names, as they stand there.

    Raises:
        ConfigError: it is no table of names
    """
    named, folder = checkpoint.extra.get("tokenizers", {}), checkpoint.folder
    if not isinstance(named, Mapping):
        raise ConfigError(f"'tokenizers' in the config of {folder} should be a table of names")
    return {check_name(n, f"a tokenizer in {folder}"): place for n, place in named.items()}


def _resolved(folder: Path | None, place: Any) -> str | Path:
    """A tokenizer that a config names: beside the model, shipped, a hub id, or "4m".

    What lies elsewhere is not opened: the author of a config is not its user.

    Raises:
        ConfigError: it lies elsewhere
    """
    from fourm_lite.io.hub import is_hub_id, shipped

    if folder is not None and isinstance(place, str) and (folder / place).exists():
        return place_inside(folder, place, "a tokenizer of a config (tokenizers= names others)")
    if isinstance(place, str):
        with contextlib.suppress(CheckpointError):
            return shipped(place)
        if place == "4m" or is_hub_id(place):
            return place
    raise ConfigError(
        f"the config in {folder} names the tokenizer {place!r:.80}, which is neither beside it nor "
        "shipped nor a hub id; say with tokenizers= where it is"
    )


def places(entry: Modality, tokenizer: VQTokenizer) -> tuple[int, int] | None:
    """The grid on which a modality's flat tokens lie.

    Several codebooks say one vector: their tokens lie on no grid of places, so it is None.
    """
    return entry.grid if tokenizer.config.num_codebooks == 1 else None


def _names(entry: Modality) -> list[str]:
    names = [entry.name, entry.stem, entry.tokenizer, entry.stem.removeprefix("tok_")]
    return [n for n in dict.fromkeys(names) if n]


def below(folder: Path | None) -> dict[str, Path]:
    """Sub-folders that hold a tokenizer, directly or under `weights/`."""
    if folder is None or not folder.is_dir():
        return {}
    found = {}
    for child in sorted(folder.iterdir()):
        for place in (child, child / "weights"):
            if (place / "config.json").is_file() or (place / "tokenizer.json").is_file():
                found[child.name] = place
    return found
