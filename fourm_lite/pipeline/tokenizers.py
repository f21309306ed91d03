"""The tokenizers that belong to a model, each opened when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fourm_lite.errors import ConfigError, FourMError, suggest
from fourm_lite.modalities.spec import Modality
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
        sources = {**below(model_folder and model_folder / "tokenizers"), **named}
        if isinstance(tokenizers, (str, Path)):
            folder = Path(tokenizers).expanduser()
            if not folder.is_dir():
                raise ConfigError(
                    f"tokenizers= expects a mapping or a folder that holds one folder for each "
                    f"tokenizer; {folder} is no folder"
                )
            sources.update(below(folder))
        elif tokenizers is not None:
            sources.update(tokenizers)
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
