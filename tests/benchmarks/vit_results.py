"""The table "FMViT on a few photos" of docs/results.md, cell by cell, and it goes on after a stop.

    OMP_NUM_THREADS=1 nice -n 10 python tests/benchmarks/vit_results.py --out OUT [--shots 5,20,0]
    python tests/benchmarks/vit_results.py --out OUT --show

A finished cell is kept in OUT/cells.json under the weights that it was made with; a row that does
not depend on them (from scratch, the teachers) is not run again for others. Features are cached.
Frozen rows with few photos are means over five draws of training photos, tuned rows one draw.
Shots of 0 are all training photos. `--show` prints the Markdown and runs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fourm_lite.backbone.config import HeadConfig
from fourm_lite.backbone.vit import FMViT
from fourm_lite.embedders.load import load_embedder
from fourm_lite.finetune.finetune import FinetuneConfig, finetune
from fourm_lite.finetune.probe import choose_linear, fit_linear, photo_features
from fourm_lite.finetune.task import predict
from fourm_lite.metrics.classification import classification_report, knn_predict
from fourm_lite.model.load import load_model
from fourm_lite.photos.labelled import LabelledSet, Splits, few_shots, read_labelled
from fourm_lite.training.initial.start import start_from_vit

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = ("flowers5", "clothing10")
DRAWS, FEW_L2, WATCHED = 5, 0.1, 10  # WATCHED: validation photos a class of the tuned rows


@dataclass(frozen=True)
class Tuning:
    """Photos a step, and passes over the photos: of pretrained weights and from scratch."""

    batch: int
    epochs: int
    scratch_epochs: int


TUNING = {5: Tuning(8, 10, 30), 20: Tuning(16, 6, 12), 0: Tuning(32, 1, 2)}
Features = tuple[Tensor, Tensor, Tensor]  # of training, validation and test photos


@dataclass(frozen=True)
class Row:
    """A line of the table; `source` is "model", "scratch" or a teacher."""

    name: str
    source: str
    kind: str


ROWS = (
    Row("kNN, k = 20", "model", "knn"),
    Row("linear probe", "model", "probe"),
    Row("LoRA", "model", "lora"),
    Row("full fine-tuning", "model", "full"),
    Row("from scratch, same size", "scratch", "full"),
    Row("ViT-Ti teacher, kNN", "vit", "knn"),
    Row("ViT-Ti teacher, linear probe", "vit", "probe"),
    Row("MobileNetV2 teacher, linear probe", "mobilenet", "probe"),
)


class Bench:
    """Where things are, and what was measured already."""

    def __init__(self, out: Path, model: str, size: int) -> None:
        self.out, self.model, self.size = out, model, size
        self.book = out / "cells.json"
        self.cells = json.loads(self.book.read_text()) if self.book.is_file() else {}
        state = FMViT.from_pretrained(model, head=HeadConfig(num_classes=0)).state_dict()
        digest = hashlib.sha256()
        for value in state.values():
            digest.update(value.numpy().tobytes())
        self.weights = digest.hexdigest()[:8]

    def key(self, row: Row, name: str, shots: int) -> str:
        of = {"model": self.weights, "scratch": "scratch"}.get(row.source, row.source)
        return f"{of} {row.kind} {name} {shots}"

    def keep(self, key: str, report: dict[str, Any]) -> None:
        self.cells[key] = report
        self.out.mkdir(parents=True, exist_ok=True)
        part = self.book.with_suffix(".part")
        part.write_text(json.dumps(self.cells, indent=1) + "\n")
        part.replace(self.book)


def photos(name: str) -> Splits:
    folder = SHARED / "labels" / name
    train = read_labelled(folder, split="train")
    rest = [read_labelled(folder, split=s, classes=train.classes) for s in ("val", "test")]
    return Splits(train, *rest)


def vit_teacher(bench: Bench) -> str:
    """The small pretrained ViT as a model of `mini`'s size, so that it is read the same way."""
    folder = bench.out / "vit_teacher"
    if not folder.is_dir():
        model = load_model(bench.model)
        start_from_vit(model, load_file(SHARED / "teacher/vit_tiny_patch16_224.fp16.safetensors"))
        model.save(folder)
    return str(folder)


def features(bench: Bench, source: str, name: str) -> Features:
    cache, parts = bench.out / "features", photos(name)
    sets = (parts.train, parts.val, parts.test)
    if source == "mobilenet":
        path = cache / f"mobilenet-{name}.npz"
        if not path.is_file():
            network = load_embedder(f"onnx:{SHARED}/teacher/mobilenet_v2_imagenet.onnx")
            found = [network.embed_image(_pictures(s), normalize=False) for s in sets]
            cache.mkdir(parents=True, exist_ok=True)
            np.savez(path, *found)
        stored = np.load(path, allow_pickle=False)
        return tuple(torch.from_numpy(stored[f"arr_{i}"]) for i in range(3))
    folder = vit_teacher(bench) if source == "vit" else bench.model
    vit = FMViT.from_pretrained(folder, head=HeadConfig(num_classes=0))
    return tuple(photo_features(vit, s, cache=cache) for s in sets)


def _pictures(part: LabelledSet) -> Any:
    return (photo.record.open_image() for photo in part.photos)


def frozen(bench: Bench, row: Row, name: str, shots: int) -> dict[str, Any]:
    """kNN or a linear probe; with few photos the mean over draws."""
    data = photos(name)
    x, val, test = features(bench, row.source, name)
    y, place = data.train.labels, {p.record.id: i for i, p in enumerate(data.train.photos)}
    answers = []
    for draw in range(DRAWS if shots else 1):
        part = few_shots(data.train, shots, draw) if shots else data.train
        rows = torch.tensor([place[photo.record.id] for photo in part.photos])
        if row.kind == "knn":
            known = x[rows].numpy(), y[rows].numpy()
            answers.append(knn_predict(*known, test.numpy()))
            continue
        count = len(data.train.classes)
        if shots:
            linear = fit_linear(x[rows], y[rows], count, l2=FEW_L2)
        else:
            linear = choose_linear((x, y), (val, data.val.labels), count)
        answers.append(linear(test).argmax(dim=-1).numpy())
    return classification_report(np.stack(answers), data.test.labels.numpy(), data.train.classes)


def tuned(bench: Bench, row: Row, name: str, shots: int) -> dict[str, Any]:
    """LoRA, full or from scratch; one draw, seed 0."""
    data, how = photos(name), TUNING[shots]
    train = few_shots(data.train, shots, 0) if shots else data.train
    parts = Splits(train, few_shots(data.val, WATCHED, 0), None)
    scratch = row.source == "scratch"
    config = FinetuneConfig(
        mode=row.kind, batch_size=how.batch, from_scratch=scratch, patience=0, workers=0,
        epochs=how.scratch_epochs if scratch else how.epochs,
        layer_decay=1.0 if scratch else 0.75,
    )  # fmt: skip
    out = bench.out / "runs" / bench.key(row, name, shots).replace(" ", "-")
    found = finetune(
        bench.model, parts, out, config, image_size=bench.size, resume=(out / "run").is_dir()
    )
    logits = predict(found.model, data.test, (bench.size, bench.size))
    shutil.rmtree(out)
    return classification_report(
        logits.argmax(dim=-1).numpy(), data.test.labels.numpy(), data.train.classes
    )


MEASURES: dict[str, Callable[[Bench, Row, str, int], dict[str, Any]]] = {
    "knn": frozen, "probe": frozen, "lora": tuned, "full": tuned,
}  # fmt: skip


def run(bench: Bench, shots: list[int], names: list[str], rows: list[Row]) -> None:
    """Measures what is missing, frozen rows and few photos first."""
    cells = [
        (row.kind in ("lora", "full"), n or 10**6, name, row)
        for name in names for n in shots for row in rows
    ]  # fmt: skip
    for _, n, name, row in sorted(cells, key=lambda cell: cell[:2]):
        n = 0 if n == 10**6 else n
        key = bench.key(row, name, n)
        if key in bench.cells:
            continue
        start = time.process_time()
        report = MEASURES[row.kind](bench, row, name, n)
        facts = {k: report[k] for k in ("accuracy", "interval", "per_class")}
        size = 224 if row.kind in ("knn", "probe") else bench.size
        bench.keep(key, {**facts, "size": size, "seconds": time.process_time() - start})
        print(key, json.dumps(bench.cells[key]["accuracy"]), flush=True)


def table(bench: Bench, names: list[str]) -> str:
    """The Markdown; a cell without a figure was not measured."""
    heads = [(name, n) for name in names for n in TUNING]
    lines = [
        "| | " + " | ".join(f"{name}, {n or 'all'}" for name, n in heads) + " |",
        "| --- |" + " --- |" * len(heads),
    ]
    for row in ROWS:
        shown = [_shown(bench.cells.get(bench.key(row, name, n))) for name, n in heads]
        lines.append(f"| {row.name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    low, high = cell["interval"]
    return f"{100 * cell['accuracy']:.1f} ({100 * low:.1f} - {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--shots", default=",".join(str(n) for n in TUNING))
    parser.add_argument("--rows", default=r"*", help="parts of the rows' names, commas between")
    parser.add_argument("--size", type=int, default=160, help="side of the tuned rows' photos")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    bench = Bench(given.out, given.model, given.size)
    names = given.sets.split(",")
    words = given.rows.split(",")
    rows = [r for r in ROWS if given.rows == "*" or any(w in r.name for w in words)]
    if not given.show:
        run(bench, [int(n) for n in given.shots.split(",")], names, rows)
    print(table(bench, names))


if __name__ == "__main__":
    main()
