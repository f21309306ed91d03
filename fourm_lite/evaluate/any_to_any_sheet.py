"""Pictures of what a model makes of some photos: a sheet for each source, a row for each photo.

What is drawn is generated, or drawn from labels; no photo is shown, nor what a photo could be told
by: pixels, their edges, and colours that were generated from pixels are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.evaluate.any_to_any import cells
from fourm_lite.evaluate.caption_sets import CaptionPack
from fourm_lite.evaluate.references import References, Teachers, read_references, roles
from fourm_lite.io.files import replacing, write_whole
from fourm_lite.modalities.array_codecs import LabelCodec
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.progress import StageProgress
from fourm_lite.show.contact_sheet import Cell, contact_sheet

PHOTOS, SIDE = 10, 128
_UNDRAWN = frozenset({"embedding"})
_HEAD = """# Ten held-out photos, seen through the model

Each sheet shows what the model `{model}` makes of ten photos of the split `{split}` from one
source, a photo a row; words and class maps that were given stand first. Every picture is generated
(seed {seed}) or drawn from labels; the photos themselves are not shown, nor colours generated from
their pixels. Made by `{command}`.
"""


def write_gallery(
    pipe: FourMPipeline,
    folder: str | Path,
    split: str,
    teachers: Teachers,
    out: Path,
    *,
    model: str = "mini",
    seed: int = 0,
    progress: StageProgress | None = None,
) -> list[Path]:
    """Writes a sheet for each source and a README.md; returns the sheets' paths.

    Args:
        pipe: a model with its tokenizers
        folder: holds captions.jsonl
        split: which of its photos; ten are taken, drawn evenly
        teachers: who says what a photo is
        out: where the sheets go
        model: the model's name, for the page
        seed: of generation
        progress: called with the stage, and what is done of how much
    """
    photos = CaptionPack.read(folder, split).photos
    chosen = np.unique(np.linspace(0, len(photos) - 1, PHOTOS).astype(int))
    known = read_references([photos[i] for i in chosen], pipe, teachers)
    sources = list(dict.fromkeys(source for source, _ in cells(pipe, known)))
    command = f"fourm-lite evaluate any2any --model {model} --split {split} --gallery DIR"
    lines = [_HEAD.format(model=model, split=split, seed=seed, command=command)]
    paths = []
    for number, source in enumerate(sources):
        if progress is not None:
            progress(f"gallery: {' + '.join(source)}", number, len(sources))
        path = out / f"from_{'_and_'.join(source)}.webp"
        with replacing(path) as draft:
            _sheet(pipe, known, source, seed).save(draft, "WEBP", quality=80)
        title = " and ".join(source)
        lines.append(f"\n## From {title}\n\n![Generated from {title}]({path.name})\n")
        paths.append(path)
    write_whole(out / "README.md", "".join(lines))
    return paths


def _sheet(pipe: FourMPipeline, known: References, source: Sequence[str], seed: int) -> Any:
    targets = [t for s, t in cells(pipe, known) if s == tuple(source) and _may_show(s, t)]
    entries = roles(pipe.model.config.outputs, pipe)
    items = [known.item(row, source, pipe) for row in range(len(known))]
    made = {
        t: [item[entries[t].name] for item in pipe.generate(items, [entries[t].name], seed=seed)]
        for t in targets
    }
    shown: list[Cell] = []
    classes = 0
    if "segmentation" in entries:
        classes = pipe.tokenizers.vq(entries["segmentation"]).config.n_labels or 0
    given = [role for role in source if role in ("caption", "segmentation")]
    for row in range(len(known)):
        shown += [Cell(f"given: {role}", _drawn(known, role, row, classes)) for role in given]
        shown += [Cell(t, made[t][row].picture) for t in targets]
    return contact_sheet(shown, side=SIDE, columns=len(given) + len(targets))


def _may_show(source: Sequence[str], target: str) -> bool:
    return target not in _UNDRAWN and not (target == "rgb" and "pixels" in source)


def _drawn(known: References, role: str, row: int, classes: int) -> Any:
    import torch

    value = known.values[role][row]
    if role == "caption":
        return value[0]
    return LabelCodec(num_labels=classes).picture(torch.from_numpy(value))
