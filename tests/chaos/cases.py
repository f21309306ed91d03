"""Every verb that goes on after a stop, on tiny data: how it is run, and what it must end in.

A case runs in a folder of its own (the working directory) and writes to `out`; running it again
goes on with what is there. Nothing heavy that starts threads is imported before a run is forked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OUT = Path("out")
TIMES = {"seconds", "samples_per_s", "rate"}
"""Keys of JSON files that hold measured times."""
BASELINES = Path(__file__).resolve().parents[1] / "benchmarks" / "baselines.py"


@dataclass(frozen=True)
class Case:
    """A verb with its inputs.

    Units:
        share: how many of the kills it gets, beside others
        late: how many of these come after a random time instead of at a change of a file
    """

    run: Callable[[Path], None]
    share: int
    late: float = 0.3


def verb(*words: Any) -> None:
    """Runs a verb; an exit code other than 0 is an error."""
    from fourm_lite.cli import main

    try:
        main([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"exit code {end.code}") from None


def train_tokenizer(inputs: Path) -> None:
    from tiny_training import course, tokenizing

    from fourm_lite.training.loop import fit

    task, stream = tokenizing()
    fit(task, stream, course(OUT, steps=9, save_every=2, eval_every=2, accumulate=2), resume=True)


def train_model(inputs: Path) -> None:
    from tiny_training import course, mixed_pretraining

    from fourm_lite.training.loop import fit

    task, stream = mixed_pretraining()
    fit(task, stream, course(OUT, steps=8, save_every=3, keep=1, workers=1), resume=True)


def finetune(inputs: Path) -> None:
    verb(
        "finetune", inputs / "labelled", "-m", inputs / "backbone", "-o", OUT, "--mode", "full",
        "--epochs", 6, "--batch-size", 8, "--lr", 1e-9, "--patience", 2, "--resume",
    )  # fmt: skip


def pseudolabel(inputs: Path) -> None:
    verb("pseudolabel", inputs / "photos", "-o", OUT, "--shard-size", 2, "--crops", 2)


def tokenize(inputs: Path) -> None:
    tokenizers = inputs / "pipeline" / "tokenizers"
    verb(
        "tokenize", inputs / "labels", "--photos", inputs / "photos", "-o", OUT,
        "-t", f"tok_a={tokenizers / 'rgb'}#photos", "-t", f"tok_b={tokenizers / 'rgb'}#photos",
    )  # fmt: skip


def index(inputs: Path) -> None:
    from fourm_lite.photos.sources import open_sources
    from fourm_lite.search.index.index import Index
    from fourm_lite.search.index.ingest import index_items

    def colours(pictures: list[Any]) -> Any:
        return np.stack([np.asarray(p.resize((4, 4)), np.float32).reshape(-1) for p in pictures])

    begun = (OUT / "manifest.json").is_file()
    opened = Index.open(OUT) if begun else Index.create(OUT, space="colours")
    index_items(open_sources([inputs / "photos"]), colours, opened, batch_size=2, commit_rows=2)


def index_in_parts(inputs: Path) -> None:
    """What the workers of `--engine` and their driver do, in one process; then once more, where a
    shard has changed."""
    from fourm_lite.io.files import alone
    from fourm_lite.modalities.pictures import open_rgb
    from fourm_lite.photos.columns import photo_facts
    from fourm_lite.photos.source_parts import parts_of
    from fourm_lite.search.index.index import Index
    from fourm_lite.search.index.loading import Loader
    from fourm_lite.search.scale import FOLDER, Job, Stager, finish, index_parts

    def colours(pictures: list[Any]) -> Any:
        return np.stack(
            [np.asarray(p.resize((4, 4)), np.float32).reshape(-1) + 1 for p in pictures]
        )

    place = OUT.absolute()
    begun = (OUT / "manifest.json").is_file()
    opened = Index.open(place) if begun else Index.create(place, space="colours")
    job = Job(str(place), lambda: (colours, lambda known: Loader(known.get, open_rgb, photo_facts)))
    for version in ("before", "after"):
        link = inputs / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(version)
        link.replace(inputs / "shards")
        with alone(place / FOLDER):
            work = Stager(job)
            index_parts(
                lambda values, known, work=work: (
                    (number, work(value, known)) for number, value in enumerate(values)
                ),
                parts_of(inputs / "shards" / f"s-{n}.tar" for n in (2, 1, 0)), opened,
            )  # fmt: skip
            finish(opened)


def add_embedding(inputs: Path) -> None:
    from growth_pack import pixels_4x4

    from fourm_lite import register_embedding

    register_embedding(
        "net", pixels_4x4, inputs / "pack", out=OUT, model=inputs / "pipeline", steps=3,
        batch_size=8, tokenizer_steps=4, tokens=4,
    )  # fmt: skip


def generate(inputs: Path) -> None:
    verb(
        "generate", "-m", inputs / "pipeline", "--items", inputs / "items.jsonl", "-o", OUT,
        "-t", "tok_semseg@32", "-t", "tok_rgb@32",
    )  # fmt: skip


def mix_photos(inputs: Path) -> None:
    if not (OUT / "mixed.jsonl").exists():
        verb("mix-photos", inputs / "photos", "-o", OUT / "mixed.jsonl", "--count", 40)


def baselines(inputs: Path) -> None:
    """The teacher's vectors, which the rivals of `mini` are trained on."""
    spec = importlib.util.spec_from_file_location("baselines", BASELINES)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["baselines"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Teacher:
        def embed_image(self, pictures: list[Any], **_: Any) -> Any:
            rows = [np.asarray(p.resize((4, 4)), np.float32).reshape(-1) for p in pictures]
            return np.stack(rows)

    module.load_embedder = lambda name: Teacher()
    for split in ("train", "val"):
        module.read_part(inputs / "captioned", split, "teacher", OUT)


CASES = {
    "train (tokenizer)": Case(train_tokenizer, 16),
    "train (model)": Case(train_model, 14),
    "finetune": Case(finetune, 14),
    "pseudolabel": Case(pseudolabel, 12),
    "tokenize": Case(tokenize, 10),
    "index": Case(index, 10, late=0.85),
    "parts of an index": Case(index_in_parts, 10, late=0.6),
    "generate --items": Case(generate, 10),
    "add-embedding": Case(add_embedding, 6),
    "mix-photos": Case(mix_photos, 4),
    "baselines": Case(baselines, 4),
}


def write_inputs(folder: Path) -> None:
    """What all cases read."""
    from growth_pack import write_pack
    from tiny import tiny_model
    from tiny_photos import write_list
    from tiny_pipeline import save_pipeline

    (folder / "photos").mkdir(parents=True)
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    _write_shards(folder)
    write_list(folder / "labelled")
    write_pack(folder / "pack")
    tiny_model(scale=2.0).save(folder / "backbone")
    save_pipeline(folder / "pipeline")
    verb("pseudolabel", folder / "photos", "-o", folder / "labels", "--shard-size", 2)
    photos = [str(folder / "photos" / f"{i}.png") for i in range(4)]
    items = [{"id": f"i{i}", "rgb": photo} for i, photo in enumerate(photos)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    rows = [
        {"id": str(i), "file": photo, "captions": ["a"], "split": "train" if i < 2 else "val"}
        for i, photo in enumerate(photos)
    ]
    (folder / "captioned").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "captioned" / "captions.jsonl").write_text(lines)


def _write_shards(folder: Path) -> None:
    """Shards of two times; the columns of the later ones have other types."""
    from tiny_shards import shard

    says = (lambda i: {"x": i}, lambda i: {"x": i + 0.5, "y": [i]}, lambda i: {"x": i, "z": "a"})
    for version, start in (("before", 0), ("after", 2)):
        (folder / version).mkdir()
        for n, said in enumerate(says):
            first = 10 * n + (start if n == 1 else 0)
            shard(folder / version / f"s-{n}.tar", range(first, 10 * n + 6), said)


def result(name: str) -> dict[str, str]:
    """What a case has written: a hash a file, measured times left out; rows of an index."""
    if name == "index":
        return dict(_rows())
    if name == "parts of an index":
        return dict(_rows()) | dict(_files_of_rows())
    return {
        str(path.relative_to(OUT)): hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(OUT.rglob("*"))
        if path.is_file()
    }


def _rows() -> Iterator[tuple[str, str]]:
    from fourm_lite.search.index.index import Index

    opened = Index.open(OUT)
    for batch in opened.scan(["id", "vector", "content_hash", "row_hash"]):
        for row in batch.to_pylist():
            yield row["id"], repr(row)
    yield "manifest.json", (OUT / "manifest.json").read_text()
    yield "files", ", ".join(sorted(p.name for p in OUT.iterdir()))


def _files_of_rows() -> Iterator[tuple[str, str]]:
    """What is left beside the rows: nothing."""
    from tiny_shards import orphans

    from fourm_lite.search.index.index import Index

    yield "files that no version names", repr(orphans(Index.open(OUT)))
    yield "notes", repr(list((OUT / "parts").glob("*.json")))


def _content(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(path.read_text()))).encode()
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        return "\n".join(json.dumps(_timeless(json.loads(line))) for line in lines).encode()
    if path.suffix == ".md":  # the card of a grown model tells how long it took
        return b""
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def quiet() -> None:
    """Standard output and error go to a file beside `out`."""
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
