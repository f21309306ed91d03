"""Pictures of what a model makes of some photos: a sheet for each source, a row for each photo.

A photo itself is shown where its list names a free licence, and is then credited. Of other photos
nothing is shown that they could be told by: pixels, their edges, colours generated from pixels.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.evaluate.any_to_any import cells
from fourm_lite.evaluate.references import References, Teachers, read_references, roles
from fourm_lite.io.files import replacing, write_whole
from fourm_lite.metrics.measures import evenly
from fourm_lite.modalities.codecs import Key, legend_of
from fourm_lite.photos.records import Record
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.pipeline.readers import raw_codec
from fourm_lite.progress import StageProgress
from fourm_lite.show.contact_sheet import Cell, contact_sheet

PHOTOS, SIDE = 9, 144
_FREE = re.compile(r"public domain|CC0|CC[- ]BY(-SA)?[- ]\d", re.IGNORECASE)
_UNDRAWN = frozenset({"embedding"})
_HEAD = """# Any to any, in pictures

What the model `{model}` makes of {count} photos: a sheet for each source, a row for each photo.
What was given stands first, everything else is generated (seed {seed}).{photos} Made by

```sh
{command}
```
"""
_SHOWN = """ The photo at the left, with a
person's caption under it, is there to compare with: the model sees it on the first sheet alone."""


def write_gallery(
    pipe: FourMPipeline,
    photos: Sequence[Record],
    teachers: Teachers,
    out: Path,
    *,
    options: Mapping[str, Any],
    seed: int = 0,
    progress: StageProgress | None = None,
) -> list[Path]:
    """Writes a sheet for each source and a README.md; returns the sheets' paths.

    Args:
        pipe: a model with its tokenizers
        photos: nine of them are taken, drawn evenly
        teachers: who says what a photo is
        out: where the sheets go
        options: of the command that makes the sheets, for the page: "model", "data", ...
        seed: of generation
        progress: called with the stage, and what is done of how much
    """
    chosen = evenly(len(photos), PHOTOS)
    gallery = _Gallery(pipe, [photos[i] for i in chosen], teachers, seed)
    shown = _SHOWN if all(map(_is_free, gallery.photos)) else ""
    head = {"count": len(chosen), "seed": seed, "photos": shown, "command": _command(options)}
    lines, paths = [_HEAD.format(model=options["model"], **head)], []
    for number, source in enumerate(gallery.sources):
        title = " and ".join(gallery.titles(source))
        if progress is not None:
            progress(f"gallery: {title}", number, len(gallery.sources))
        path = out / f"from_{'_and_'.join(source)}.webp"
        with replacing(path) as draft:
            gallery.sheet(source).save(draft, "WEBP", quality=80)
        lines.append(f"\n## From: {title}\n\n![Generated from: {title}]({path.name})\n")
        paths.append(path)
    credited = [_credit(photo) for photo in gallery.photos if _is_free(photo)]
    lines += ["\n## The photos\n\n", *credited] if credited else []
    write_whole(out / "README.md", "".join(lines))
    return paths


def _command(options: Mapping[str, Any]) -> str:
    """What draws the same gallery again."""
    given = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value]
    return " ".join(["fourm-lite evaluate any2any", *given, "--gallery DIR"])


def _is_free(photo: Record) -> bool:
    return bool(_FREE.match(str(photo.fields.get("licence", ""))))


def _credit(photo: Record) -> str:
    author, licence, source = (photo.fields.get(n, "") for n in ("author", "licence", "source"))
    return f"- `{photo.id}`: {author}, {licence}, <{source}>\n"


class _Gallery:
    """Some photos, what is known of them, and sheets of what a model makes of that."""

    def __init__(
        self, pipe: FourMPipeline, photos: Sequence[Record], teachers: Teachers, seed: int
    ) -> None:
        self.pipe, self.photos, self.seed = pipe, photos, seed
        self.known: References = read_references(photos, pipe, teachers)
        self.inputs = roles(pipe.model.config.inputs, pipe)
        self.outputs = roles(pipe.model.config.outputs, pipe)
        self.sources = list(dict.fromkeys(source for source, _ in cells(pipe, self.known)))

    def titles(self, source: Sequence[str]) -> list[str]:
        """A source in words."""
        return ["Photo" if r == "pixels" else self.inputs[r].title for r in source]

    def sheet(self, source: Sequence[str]) -> Any:
        """A row for each photo: itself, what is given of it, and every target."""
        free = all(map(_is_free, self.photos))
        targets = [t for t in self.outputs if t not in source and _may_show(source, t, free)]
        names = [self.outputs[t].name for t in targets]
        items = [self.known.item(row, source, self.pipe) for row in range(len(self.known))]
        made = self.pipe.generate(items, names, seed=self.seed)
        given = [r for r in source if r != "pixels" and (free or r != "edges")]
        lines = []
        for row, values in enumerate(made):
            line = [self._photo(row, "caption" not in given)] if free else []
            line += [self._given(role, row) for role in given]
            lines.append(line + [Cell.of(values[name]) for name in names])
        below = [cell for line in lines[1:] for cell in map(_below, line, lines[0])]
        return contact_sheet([*lines[0], *below], side=SIDE, columns=len(lines[0]))

    def _photo(self, row: int, told: bool) -> Cell:
        from PIL import Image

        words = (Key(self.photos[row].captions[0]),) if told else ()
        return Cell("Photo", Image.fromarray(self.known.values["pixels"][row]), words)

    def _given(self, role: str, row: int) -> Cell:
        import torch

        value, entry = self.known.values[role][row], self.inputs[role]
        title = f"Given: {entry.title}"
        if role == "caption":
            return Cell(title, value[0])
        tokenizer = self.pipe.tokenizers.vq(entry)
        codec = raw_codec(entry, tokenizer)
        raw = torch.from_numpy(np.ascontiguousarray(value))
        raw = 2.0 * raw[None].float() - 1 if role == "edges" else raw
        return Cell(title, codec.picture(raw), legend_of(codec, raw))


def _below(cell: Cell, first: Cell) -> Cell:
    """A cell without the title and the notes that the first one of its column has."""
    notes = {key for key in first.legend if key.color is None and not key.value}
    return Cell("", cell.content, [key for key in cell.legend if key not in notes])


def _may_show(source: Sequence[str], target: str, free: bool) -> bool:
    return target not in _UNDRAWN and (free or not (target == "rgb" and "pixels" in source))
