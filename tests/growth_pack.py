"""Drawn photos with captions, and a network of 48 numbers a photo, for the tests of growth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny_pipeline import photo

WORDS = ("a red circle", "a blue square", "two dogs")


def pixels_4x4(pictures):
    return np.stack([np.asarray(p.resize((4, 4))).reshape(-1) / 255 for p in pictures])


def write_pack(folder: Path, count: int = 40) -> Path:
    """A folder with images/ and captions.jsonl; one file is no picture."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        photo(i).save(folder / "images" / f"{i:02d}.png")
        row = {"id": f"p{i:02d}", "file": f"images/{i:02d}.png", "captions": [WORDS[i % 3]]}
        rows.append(row)
    (folder / "images" / "broken.png").write_bytes(b"no picture")
    rows.append({"id": "broken", "file": "images/broken.png", "captions": ["nothing"]})
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "captions.jsonl").write_text(lines + "\n", encoding="utf-8")
    return folder
