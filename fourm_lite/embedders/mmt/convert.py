"""Writes a joint encoder as a folder of ours: safetensors, config.json and its tokenizer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fourm_lite.embedders.mmt.load import build
from fourm_lite.embedders.mmt.saved import DOOR, Saved, read_saved
from fourm_lite.embedders.mmt.words import open_tokenizer
from fourm_lite.io.files import write_json
from fourm_lite.io.layout import CONFIG, WEIGHTS
from fourm_lite.io.writing import write_file


def convert_joint(source: str | Path, folder: str | Path) -> Saved:
    """Writes what `mmt:FOLDER` opens; nothing is written where the weights do not fit.

    A vocabulary goes along where the source has one; a published one stays a name.

    Raises:
        CheckpointError: weights are missing or do not fit
        ConfigError: a class or form that is not read
    """
    saved = read_saved(source)
    build(saved, str(source))
    root = Path(folder)
    write_file(root / WEIGHTS, saved.weights, metadata=None)
    values = {"format": 1, "door": DOOR, **asdict(saved.config)}
    write_json(root / CONFIG, values, indent=2)
    if isinstance(saved.tokenizer, Path):
        tokenizer = open_tokenizer(saved.tokenizer, lower_case=saved.config.lower_case)
        tokenizer.save(str(root / "tokenizer.json"))
    return saved
