"""Writes a joint encoder as a folder of ours: safetensors, config.json and its tokenizer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fourm_lite.embedders.mmt.config import JointConfig
from fourm_lite.embedders.mmt.load import build
from fourm_lite.embedders.mmt.saved import DOOR, Saved, read_saved
from fourm_lite.embedders.mmt.words import open_tokenizer
from fourm_lite.embedders.pth import Weights
from fourm_lite.io.files import write_json, write_whole
from fourm_lite.io.layout import CONFIG, WEIGHTS
from fourm_lite.io.writing import write_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def convert_joint(source: str | Path, folder: str | Path) -> Saved:
    """Writes what `mmt:FOLDER` opens; nothing is written where the weights do not fit.

    A vocabulary goes along where the source has one; a published one stays a name.

    Raises:
        CheckpointError: weights are missing or do not fit
        ConfigError: a class or form that is not read
    """
    saved = read_saved(source)
    build(saved, str(source))
    tokenizer = None
    if isinstance(saved.tokenizer, Path):
        tokenizer = open_tokenizer(saved.tokenizer, lower_case=saved.config.lower_case)
    write_joint(folder, saved.config, saved.weights, tokenizer)
    return saved


def write_joint(
    folder: str | Path, config: JointConfig, weights: Weights, tokenizer: Tokenizer | None
) -> None:
    """Writes a network under our names, with its tokenizer where there is one."""
    root = Path(folder)
    write_file(root / WEIGHTS, weights, metadata=None)
    write_json(root / CONFIG, {"format": 1, "door": DOOR, **asdict(config)}, indent=2)
    if tokenizer is not None:
        write_whole(root / "tokenizer.json", tokenizer.to_str(pretty=True))
