"""Makes `stored/`: what version 0.1.0.dev of commit 249b6e1 left on the disk, done and half done.

Run by that version, with its own helpers of tests:

    git worktree add OLD 249b6e1
    PYTHONPATH=OLD:OLD/tests:tests python tests/compat/make_old.py tests/compat/stored

Photos are drawn. Paths in lists are written relative to the folder, as `@ROOT@`.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

from compat.network import small_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipeline import save_pipeline
from tiny_training import classifying, course

from fourm_lite import register_embedding
from fourm_lite.cli import main
from fourm_lite.demo.examples import drawings
from fourm_lite.embedders import image_configs
from fourm_lite.search.gallery import index_photos, open_index
from fourm_lite.search.spaces import open_space
from fourm_lite.training.loop import fit

ROOT, PACKED = "@ROOT@", "stored.tar.xz"
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
TIMM = {
    "input_size": [3, 64, 64], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    **HALF,
}  # fmt: skip
PREPROCESSING = [
    *(("transformers", {"image_processor_type": f"{kind}ImageProcessor"})
      for kind in ("CLIP", "Siglip", "Siglip2", "Blip", "ViT", "DINOv3ViT", "Bit")),
    ("transformers", {"image_processor_type": "EfficientNetImageProcessor", "include_top": False}),
    ("transformers", {"image_processor_type": "EfficientNetImageProcessor"}),
    ("transformers", {"image_processor_type": "ConvNextImageProcessor", "crop_size": 224,
                      "size": {"shortest_edge": 224}, "image_mean": [0.5, 0.5, 0.5],
                      "image_std": [0.5, 0.5, 0.5]}),
    ("timm", TIMM),
    ("timm", {**TIMM, "crop_mode": "squash", "interpolation": "bilinear"}),
    ("open_clip", {"size": 64, "resize_mode": "shortest", "interpolation": "bicubic"}),
    ("open_clip", {"size": [64, 64], "resize_mode": "squash", **HALF}),
    ("preset", "clip"),
    ("preset", "imagenet"),
]  # fmt: skip
"""Preprocessing as files state it; of ConvNeXt's, crop_pct was not known and pixels were wrong."""


class StoppedError(Exception):
    """A run that is stopped on purpose."""


def draw_photos(folder: Path) -> None:
    """Drawings with captions."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for drawing in drawings(30, size=32):
        drawing.picture.save(folder / "images" / drawing.name)
        file, name = f"images/{drawing.name}", drawing.name.partition(".")[0]
        rows.append({"id": name, "file": file, "captions": ["a red circle"]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sources(root: Path) -> None:
    """Six photos as a folder, a labelled tar and a list."""
    some = sorted((root / "photos" / "images").iterdir())[:6]
    (root / "six").mkdir()
    for path in some:
        shutil.copy(path, root / "six")
    with tarfile.open(root / "six.tar", "w") as tar:
        for path in some:
            for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.cls", b"drawn")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    rows = [{"id": f"row{i}", "image": f"six/{path.name}"} for i, path in enumerate(some)]
    (root / "six.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def indexes(root: Path) -> None:
    """An index of each kind."""
    space = open_space(root / "pipeline")
    for source, codes in (("six", False), ("six", True), ("six.tar", False), ("six.jsonl", False)):
        name = "codes" if codes else source.replace(".", "_")
        index_photos(
            [root / source], open_index(root / "idx" / name, space, codes_only=codes), space
        )
    gallery = open_space(root / "pipeline", gallery=small_network())
    index_photos([root / "six"], open_index(root / "idx" / "gallery", gallery), gallery)
    twin = open_space(small_network())
    index_photos([root / "six"], open_index(root / "idx" / "network", twin), twin)


def labels(root: Path) -> None:
    """Labels and tokens."""
    rgb = root / "pipeline" / "tokenizers" / "rgb"
    for words in (
        ("pseudolabel", root / "six", "-o", root / "labels", "--size", 32,
         "--labels", "canny_edge,color_palette"),
        ("tokenize", root / "labels", "--photos", root / "six", "-o", root / "tokens",
         "-t", f"tok={rgb}#photos"),
    ):  # fmt: skip
        with suppress(SystemExit):
            main([str(word) for word in words])


def grown(root: Path) -> None:
    """A modality that is being added, stopped when its vectors were there."""

    def stop(what: str, done: int, total: int) -> None:
        if "photos" not in what:
            raise StoppedError(what)

    with suppress(StoppedError):
        register_embedding(
            "net", small_network(), root / "photos", out=root / "grown", model=root / "pipeline",
            steps=3, batch_size=8, tokenizer_steps=4, tokens=4, progress=stop,
        )  # fmt: skip


def trained(root: Path) -> None:
    """A training run of ten steps, stopped after the seventh; its checkpoint is of the fifth."""

    def stop(step: int, steps: int, numbers: object) -> None:
        if step == 7:
            raise StoppedError

    task, stream = classifying()
    with suppress(StoppedError):
        fit(task, stream, course(root / "run"), progress=stop)


def preprocessing(root: Path) -> None:
    """The texts of preprocessing that were hashed."""
    rows = []
    for library, config in PREPROCESSING:
        read = getattr(image_configs, "preset" if library == "preset" else f"from_{library}")
        rows.append({"library": library, "config": config, "text": repr(read(config))})
    (root / "preprocessing.json").write_text(json.dumps(rows, indent=1) + "\n")


def small(pipeline: Path) -> None:
    """Rounds the weights of a pipeline to fifteen values a tensor, which are packed well."""
    shutil.rmtree(pipeline / "tokenizers" / "semseg")
    for path in pipeline.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            notes = file.metadata()
        tensors = load_file(path)
        for name, value in tensors.items():
            if value.is_floating_point() and value.numel() > 64:
                step = value.abs().max() / 7
                tensors[name] = (value / step).round() * step
        save_file(tensors, path, metadata=notes)


def make(root: Path) -> None:
    """All of it, in a new folder."""
    draw_photos(root / "photos")
    save_pipeline(root / "pipeline")
    small(root / "pipeline")
    sources(root)
    indexes(root)
    labels(root)
    trained(root)
    grown(root)
    shutil.rmtree(root / "grown" / "work" / "tokenizer")
    for path in [*root.rglob("*.json"), *root.rglob("*.jsonl")]:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(str(root), ROOT), encoding="utf-8")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    preprocessing(out)
    with tempfile.TemporaryDirectory() as work:
        make(Path(work) / "stored")
        with tarfile.open(out / PACKED, "w:xz", preset=9) as packed:
            packed.add(Path(work) / "stored", "stored")
