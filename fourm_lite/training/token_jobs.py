"""Which tokenizer reads which label: from a word on a command line, and the recipe beside it."""

from __future__ import annotations

from pathlib import Path

from fourm_lite.data.tokenized import PHOTOS, TokenJob
from fourm_lite.errors import ConfigError
from fourm_lite.io.hub import resolve
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.vqvae import VQTokenizer
from fourm_lite.training.tokenizer_recipes import TokenizerRecipe


def open_job(word: str, labels: Path | None = None, *, device: str = "cpu") -> TokenJob:
    """The job behind `[FOLDER=]NAME_OR_PATH[#LABEL]`.

    The folder is "tok_" and the tokenizer's name unless said; the label is what its recipe says
    that it learned, or the one of its own name, or the pixels where it reads three channels.

    Raises:
        CheckpointError: there is no such tokenizer
        ConfigError: nothing says which label it reads
    """
    folder, equals, rest = word.partition("=")
    source, _, label = (rest if equals else word).partition("#")
    place = resolve(source)
    name = place.parent.name if place.name == "weights" else place.stem
    tokenizer = load_tokenizer(place, device=device)
    return TokenJob(
        tokenizer,
        folder if equals else f"tok_{name}",
        _label(label, name, place, labels, tokenizer),
    )


def _label(said: str, name: str, place: Path, labels: Path | None, tokenizer: VQTokenizer) -> str:
    if said:
        return PHOTOS if said == "photos" else said
    recipe = place.parent / "recipe.toml"
    if recipe.is_file():
        values = TokenizerRecipe.read(recipe).values
        return PHOTOS if values.form == "photos" else values.label
    if labels is not None and (labels / name).is_dir():
        return name
    if tokenizer.config.n_channels == 3 and tokenizer.config.n_labels is None:
        return PHOTOS
    known = sorted(p.name for p in labels.iterdir() if p.is_dir()) if labels else []
    raise ConfigError(
        f"nothing says what the tokenizer '{name}' reads; write NAME#LABEL, with 'photos' for the "
        f"pixels or one of the labels {known}"
    )
