"""Small sets of labelled pictures: every class has a colour of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 190, 50), "blue": (40, 60, 210)}


def picture(name: str, seed: int) -> Image.Image:
    """A noisy picture in the colour of its class."""
    noise = np.random.default_rng(seed).integers(-35, 36, (20, 24, 3))
    return Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


def write_list(root: Path, *, train: int = 8, val: int = 3, test: int = 4) -> Path:
    """A folder with labels.jsonl, as in the labels pack."""
    rows = []
    for c, name in enumerate(COLOURS):
        (root / "images" / name).mkdir(parents=True)
        splits = ["train"] * train + ["val"] * val + ["test"] * test
        for i, split in enumerate(splits):
            file = f"images/{name}/{i}.png"
            picture(name, 100 * c + i).save(root / file)
            rows.append({"id": f"{name}/{i}", "file": file, "label": name, "split": split})
    (root / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def write_classes(root: Path, count: int = 4) -> Path:
    """A folder of classes."""
    for c, name in enumerate(COLOURS):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(name, 100 * c + i).save(root / name / f"{i}.png")
    return root
