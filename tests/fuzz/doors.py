"""The doors by which files of others come in, each with sound files to damage.

A door is a function: it writes damaged files into a folder and opens them as a user would.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_pipeline import photo, save_pipeline

from fourm_lite.errors import FourMError

from .damage import damaged_bytes, damaged_json, damaged_lines, damaged_toml

Door = Callable[[random.Random, Path], Any]
DOORS: dict[str, Door] = {}
SLOW: set[str] = set()
"""Doors whose cases take tenths of a second: fewer of them are tried."""


def door(function: Door, *, slow: bool = False) -> Door:
    """Enters a function into the table under its name."""
    DOORS[function.__name__] = function
    if slow:
        SLOW.add(function.__name__)
    return function


def slow_door(function: Door) -> Door:
    """The same for a door that takes long."""
    return door(function, slow=True)


@functools.cache
def ground() -> Path:
    """A folder of sound files, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="fourm-lite-fuzz-"))
    save_pipeline(folder / "model")
    return folder


def picture_bytes(form: str, size: tuple[int, int] = (24, 16), **more: Any) -> bytes:
    stream = io.BytesIO()
    photo(size=size).save(stream, form, **more)
    return stream.getvalue()


def rewritten(draw: random.Random, source: Path, place: Path, names: list[str]) -> Path:
    """A copy of a folder in which one of the named files is damaged."""
    copied = shutil.copytree(source, place)
    name = draw.choice(names)
    data = (source / name).read_bytes()
    if name.endswith(".json") and draw.randrange(4):
        data = damaged_json(draw, json.loads(data))
    else:
        data = damaged_bytes(draw, data)
    (copied / name).write_bytes(data)
    return copied


# Plans and recipes ---------------------------------------------------------------------------

PLAN = {
    "grow_conditioning": True, "conditions": ["rgb@224"],
    "targets": [
        {"modality": "tok_clip@224", "scheme": "maskgit", "steps": 8, "temperature": "linear@2",
         "guidance": {"rgb@224": 2.0}, "top_p": 0.8, "order": "linear"},
        {"modality": "caption", "max_tokens": 20, "copies": 2, "amounts": "words", "top_k": 50},
    ],
}  # fmt: skip
TOKENIZER = {
    "tokenizer": {"image_size": 32, "patch_size": 8, "codebook_size": 16, "latent_dim": 8,
                  "enc_type": "vit_32x2x2_enc", "dec_type": "vit_32x2x2_dec"},
    "values": {"form": "vectors", "labels": ["labels"], "label": "clip"},
    "train": {"out": "out", "steps": 3, "optim": {"lr": 0.001, "betas": [0.9, 0.99]}},
    "loss": "mse", "batch_size": 4,
}  # fmt: skip
MODEL = {
    "text": "text_mini", "inputs": ["rgb@224", "caption"], "outputs": ["tok_clip@224", "caption"],
    "model": {"encoder_depth": 1, "decoder_depth": 1, "dim": 32, "num_heads": 2},
    "data": {"captions": "captions.jsonl", "tokens": "tokens", "split": "train"},
    "components": [{"name": "a", "weight": 1.0, "batch_size": 2, "inputs": {"rgb@224": 1.0},
                    "targets": {"caption": 1.0}, "input_budget": [8, 8], "target_budget": [8, 8]}],
    "train": {"out": "out", "steps": 3}, "losses": {"soft": {"tok_clip@224": 0.04}},
    "modalities": [{"name": "tok_x@32", "kind": "grid", "vocab_size": 8, "grid": [2, 2],
                    "max_tokens": 4, "image_size": 32, "patch_size": 16}],
}  # fmt: skip


@door
def plan(draw: random.Random, place: Path) -> Any:
    from fourm_lite import MODALITIES, Plan

    (place / "plan.toml").write_bytes(damaged_toml(draw, PLAN))
    found = Plan.from_toml(place / "plan.toml")
    return str(found), found.steps(MODALITIES, ["rgb@224"])


@door
def tokenizer_recipe(draw: random.Random, place: Path) -> Any:
    from fourm_lite.tokenization.vq.config import parse_config
    from fourm_lite.training.tokenizer_recipes import TokenizerRecipe

    (place / "recipe.toml").write_bytes(damaged_toml(draw, TOKENIZER))
    return parse_config(TokenizerRecipe.read(place / "recipe.toml").tokenizer)


@door
def model_recipe(draw: random.Random, place: Path) -> Any:
    from fourm_lite.training.recipes import ModelRecipe

    (place / "recipe.toml").write_bytes(damaged_toml(draw, MODEL))
    return ModelRecipe.read(place / "recipe.toml").config()


# Checkpoints ---------------------------------------------------------------------------------


@slow_door
def model_folder(draw: random.Random, place: Path) -> Any:
    from fourm_lite import FourMPipeline

    names = ["config.json", "config.json", "config.json", "model.safetensors"]
    folder = rewritten(draw, ground() / "model", place / "model", names)
    pipe = FourMPipeline.from_pretrained(folder)
    return pipe.embed({"rgb": photo()})


@slow_door
def tokenizer_folder(draw: random.Random, place: Path) -> Any:
    from fourm_lite.tokenization.load import load_tokenizer

    kind = draw.choice(["rgb", "vector_global", "semseg"])
    source = ground() / "model" / "tokenizers" / kind
    names = ["config.json", "config.json", "model.safetensors"]
    return load_tokenizer(rewritten(draw, source, place / "t", names))


@door
def text_tokenizer(draw: random.Random, place: Path) -> Any:
    from fourm_lite.tokenization.words.text import load_text_tokenizer

    source = ground() / "model" / "tokenizers" / "text"
    found = load_text_tokenizer(rewritten(draw, source, place / "t", ["tokenizer.json"]))
    return found.decode(found.encode("a red circle"))


@slow_door
def vit(draw: random.Random, place: Path) -> Any:
    from fourm_lite import FMViT

    names = ["config.json", "config.json", "model.safetensors"]
    folder = rewritten(draw, ground() / "model", place / "m", names)
    return FMViT.from_pretrained(folder, num_classes=0)


@door
def spread(draw: random.Random, place: Path) -> Any:
    from fourm_lite.search.whitening import QueryWhitening, read_whitening

    QueryWhitening(
        "vector", np.eye(4, 6, dtype=np.float32), np.arange(4, 0, -1.0, np.float32)
    ).save(place)
    file = place / "spread.safetensors"
    file.write_bytes(damaged_bytes(draw, file.read_bytes()))
    found = read_whitening(place, "vector")
    return found and found(np.ones((2, 6), np.float32))


# Networks of others --------------------------------------------------------------------------


@functools.cache
def timm_folder() -> Path:
    import timm
    from tiny_networks import save_timm

    shape = {"embed_dim": 12, "depth": 1, "num_heads": 3, "img_size": 32}
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=0, **shape)
    save_timm(model, "vit_small_patch16_224", shape, 32, ground() / "timm")
    return ground() / "timm"


@functools.cache
def clip_folder() -> Path:
    from tiny_networks import clip, save_network

    return save_network(clip, ground() / "clip")


@functools.cache
def onnx_file() -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).normal(size=(3 * 8 * 8, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["embedding"]),
    ]
    shape = ["batch", 3, 8, 8]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, ground() / "net.onnx")
    return ground() / "net.onnx"


@slow_door
def converted(draw: random.Random, place: Path) -> Any:
    from fourm_lite.embedders.convert import convert_pth

    stream = io.BytesIO()
    weights = {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}
    torch.save({"model": weights, "epoch": 3, "optimizer": {"lr": 0.1}}, stream)
    (place / "w.pth").write_bytes(damaged_bytes(draw, stream.getvalue()))
    return convert_pth(place / "w.pth", place / "out")


@door
def imagebind(draw: random.Random, place: Path) -> Any:
    from fourm_lite.embedders.imagebind import ImageBindConfig

    config = {"width": 16, "depth": 1, "num_heads": 2, "image_size": 28, "out_dim": 8}
    (place / "config.json").write_bytes(damaged_json(draw, config))
    return ImageBindConfig.read(place / "config.json")


@slow_door
def timm_network(draw: random.Random, place: Path) -> Any:
    from fourm_lite.embedders.load import load_embedder

    names = ["config.json", "config.json", "model.safetensors"]
    folder = rewritten(draw, timm_folder(), place / "n", names)
    return load_embedder(f"timm:{folder}").embed_image([photo()])


@slow_door
def hf_network(draw: random.Random, place: Path) -> Any:
    from fourm_lite.embedders.load import load_embedder

    names = [p.name for p in clip_folder().iterdir() if p.suffix in (".json", ".safetensors")]
    folder = rewritten(draw, clip_folder(), place / "n", names)
    network = load_embedder(f"hf:{folder}")
    return network.embed_image([photo()]), network.embed_text(["abc"])


@slow_door
def onnx_network(draw: random.Random, place: Path) -> Any:
    from fourm_lite.embedders.load import load_embedder

    (place / "n.onnx").write_bytes(damaged_bytes(draw, onnx_file().read_bytes()))
    return load_embedder(f"onnx:{place / 'n.onnx'}").embed_image([photo()])


# Photos and what is said of them -------------------------------------------------------------

ROWS = [
    {"id": f"p{i}", "file": f"{i}.png", "captions": ["a dog", "two cats"], "split": "train",
     "year": 2000 + i, "label": "cat", "exif": {"iso": 100}, "boxes": [[0.1, 0.2, 0.3, 0.4]]}
    for i in range(3)
]  # fmt: skip


def photos(place: Path) -> None:
    for i in range(3):
        (place / f"{i}.png").write_bytes(picture_bytes("PNG", (12 + i, 10)))


def all_items(path: Path) -> list[Any]:
    from fourm_lite.photos.sources import open_sources

    return list(open_sources([path]))


def indexed(path: Path, place: Path) -> Any:
    """What `index` does with a source, by a network of three numbers a photo."""
    from fourm_lite.photos.sources import open_sources
    from fourm_lite.search.index.index import Index
    from fourm_lite.search.index.ingest import index_items

    def embed(pictures: list[Any]) -> Any:
        return np.stack([np.asarray(p).mean(axis=(0, 1)) + 1 for p in pictures])

    index = Index.create(place / "idx", space="toy")
    return index_items(open_sources([path]), embed, index, batch_size=2)


@slow_door
def photo_list(draw: random.Random, place: Path) -> Any:
    photos(place)
    (place / "list.jsonl").write_bytes(damaged_lines(draw, ROWS))
    return indexed(place / "list.jsonl", place)


@slow_door
def photo_table(draw: random.Random, place: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{**row, "image": picture_bytes("PNG", (8, 8))} for row in ROWS]
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), stream)
    (place / "t.parquet").write_bytes(damaged_bytes(draw, stream.getvalue()))
    return indexed(place / "t.parquet", place)


def tar_bytes(compressed: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compressed}") as tar:
        for name, data in (
            ("a.png", picture_bytes("PNG", (8, 8))), ("a.txt", b"a dog"), ("a.cls", b"3"),
            ("a.json", b'{"year": 2000}'), ("b.jpg", picture_bytes("JPEG", (8, 8))),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@slow_door
def photo_tar(draw: random.Random, place: Path) -> Any:
    form = draw.choice(["", "gz", "xz", "bz2"])
    path = place / ("t.tar" + (f".{form}" if form else ""))
    path.write_bytes(damaged_bytes(draw, tar_bytes(form)))
    return indexed(path, place)


@door
def records(draw: random.Random, place: Path) -> Any:
    from fourm_lite.photos.records import read_records

    photos(place)
    (place / "captions.jsonl").write_bytes(damaged_lines(draw, ROWS))
    return [r.open_image() for r in read_records(place)]


@door
def texts(draw: random.Random, place: Path) -> Any:
    from fourm_lite.photos.records import read_records

    text = b"a dog\ntwo cats\n\xc3\xa9\n"
    name = draw.choice(["c.txt", "c.txt.gz"])
    data = gzip.compress(text) if name.endswith("gz") else text
    (place / name).write_bytes(damaged_bytes(draw, data))
    return read_records(place / name)


@door
def labelled(draw: random.Random, place: Path) -> Any:
    from fourm_lite.photos.labelled import read_splits

    photos(place)
    (place / "labels.jsonl").write_bytes(damaged_lines(draw, ROWS))
    return read_splits(place)


@door
def pictures(draw: random.Random, place: Path) -> Any:
    from fourm_lite.modalities.pictures import open_rgb, picture_size

    form = draw.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
    data = damaged_bytes(draw, picture_bytes(form))
    picture_size(data)
    found = open_rgb(data)
    assert isinstance(found, Image.Image)
    return np.asarray(found)


CODED = {
    "det": [{"box": [0.1, 0.2, 0.3, 0.4], "label": "dog", "score": 0.9}],
    "color_palette": [[10, 20, 30], [200, 100, 0]],
    "metadata": {"v0": 3, "original_width": 640, "brightness": 0.5},
    "human_poses": {"people": [{"pose": [0.1] * 12}]},
    "sam_instance": {"instances": [{"points": [[0.1, 0.2]], "bbox": [0, 0, 1, 1]}]},
}  # fmt: skip


@door
def values(draw: random.Random, place: Path) -> Any:
    from fourm_lite import MODALITIES
    from fourm_lite.modalities.codecs import codec_of

    stem = draw.choice(sorted(CODED))
    entry = next(m for m in MODALITIES.values() if m.stem == stem)
    return codec_of(entry).read(damaged_json(draw, CODED[stem]))


# Arrays, features, labels --------------------------------------------------------------------


def npz_bytes(draw: random.Random, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    draw.choice([np.savez, np.savez_compressed])(stream, **arrays)
    return stream.getvalue()


@door
def labels(draw: random.Random, place: Path) -> Any:
    from fourm_lite.data.label_rows import LabelRows, read_labels

    (place / "clip").mkdir()
    data = npz_bytes(draw, ids=np.array(["a", "b"]), values=np.ones((2, 1, 3), np.float32))
    (place / "clip" / "shard-00000.npz").write_bytes(damaged_bytes(draw, data))
    ids, found = read_labels(place, "clip")
    return LabelRows.read(place, "clip", ids).at(0, 0), found.sum()


@door
def features(draw: random.Random, place: Path) -> Any:
    from fourm_lite.embedders.features import read_features, split_features

    data = npz_bytes(draw, features=np.ones((2, 4), np.float32), boxes=np.ones((2, 4), np.float32))
    (place / "a.npz").write_bytes(damaged_bytes(draw, data))
    with_ids = npz_bytes(draw, ids=np.array(["a"]), features=np.ones((1, 2, 4), np.float32))
    (place / "b.npz").write_bytes(damaged_bytes(draw, with_ids))
    with contextlib.suppress(FourMError):
        read_features(place / "a.npz")
    return split_features(place / "b.npz", place / "out")


@door
def feature_table(draw: random.Random, place: Path) -> Any:
    import base64

    from fourm_lite.embedders.features import split_features

    numbers = base64.b64encode(np.ones(8, np.float32).tobytes()).decode()
    rows = [f"{name}\t640\t480\t2\t{numbers}\t{numbers}" for name in ("1", "2")]
    (place / "f.tsv").write_bytes(damaged_bytes(draw, "\n".join(rows).encode()))
    return split_features(place / "f.tsv", place / "out").vectors()


@door
def vectors(draw: random.Random, place: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet
    from safetensors.numpy import save

    from fourm_lite.search.vectors import open_vectors

    found, ids = np.ones((3, 4), np.float32), np.array(["a", "b", "c"])
    form = draw.choice([".npy", ".npz", ".safetensors", ".parquet"])
    stream = io.BytesIO()
    if form == ".npy":
        np.save(stream, found)
    elif form == ".npz":
        stream.write(npz_bytes(draw, vectors=found, ids=ids))
    elif form == ".safetensors":
        stream.write(save({"vectors": found}))
    else:
        table = pa.table({"id": ids.tolist(), "vector": found.tolist()})
        parquet.write_table(table, stream)
    path = place / f"v{form}"
    path.write_bytes(damaged_bytes(draw, stream.getvalue()))
    file = open_vectors(path)
    return file.ids, file.rows(0)


# Books and indexes ---------------------------------------------------------------------------


@functools.cache
def index_folder() -> Path:
    from fourm_lite.search.index.index import Index

    index = Index.create(ground() / "idx", space="toy", extra={"decode": "expected", "steps": 1})
    index.add(["a", "b"], np.eye(2, dtype=np.float32), year=[1, 2])
    return ground() / "idx"


@slow_door
def manifest(draw: random.Random, place: Path) -> Any:
    from fourm_lite.search.engine import Search
    from fourm_lite.search.index.index import Index

    folder = rewritten(draw, index_folder(), place / "idx", ["manifest.json"])
    index = Index.open(folder)
    found = index.search([1.0, 0.0], k=2), index.info(), repr(index)
    Search.open(folder)
    return found


@functools.cache
def searched_folder() -> Path:
    """An index of the tiny model, with all that a manifest may hold."""
    from fourm_lite.search.gallery import open_index
    from fourm_lite.search.spaces import open_space

    space = open_space(ground() / "model")
    index = open_index(ground() / "searched", space)
    found, codes = space.encode_document([photo(0), photo(1)])
    index.add(["a", "b"], found, codes=codes, uri=["a.png", "b.png"])
    return ground() / "searched"


@slow_door
def extra(draw: random.Random, place: Path) -> Any:
    from fourm_lite.search.engine import Search

    folder = shutil.copytree(searched_folder(), place / "idx")
    file = folder / "manifest.json"
    told = json.loads(file.read_text())
    told["calibration"] = {
        "method": "logistic", "names": ["score", "margin"], "weights": [1.0, 2.0], "bias": 0.1,
        "centres": [0.0, 0.0], "scales": [1.0, 1.0], "threshold": 0.5, "queries": 10,
    }  # fmt: skip
    told["extra"]["rerank"] = {"cosine": 1.0, "codes": 0.5}
    file.write_bytes(damaged_json(draw, told))
    search = Search.open(folder, ground() / "model")
    return search(caption="a red circle", k=2), search(caption="a red circle", k=2, rerank=2)


@slow_door
def index_files(draw: random.Random, place: Path) -> Any:
    from fourm_lite.search.index.index import Index

    files = [
        p.relative_to(index_folder()).as_posix() for p in index_folder().rglob("*.*") if p.is_file()
    ]
    folder = rewritten(draw, index_folder(), place / "idx", sorted(files))
    index = Index.open(folder)
    return index.search([1.0, 0.0], k=2, where="year > 0"), len(index), list(index.scan())


@door
def stages(draw: random.Random, place: Path) -> Any:
    from fourm_lite.training.staged import Stages

    entry = {"settings": {"seed": 0}, "facts": {"photos": 3}, "seconds": 1.0}
    book = {"format": 1, "stages": {"photos": entry, "vectors": {**entry, "facts": None}}}
    (place / "stages.json").write_bytes(damaged_json(draw, book))
    found = Stages.open(place)
    return found.run("photos", {"seed": 0}, lambda _: {}), found.settings("vectors")


@door
def listing(draw: random.Random, place: Path) -> Any:
    from fourm_lite.add_embedding.extraction import read_listing

    rows = [{"id": "a", "image": "a.png", "captions": ["a dog"], "part": "train"}] * 3
    left = [{"uri": "b.png", "reason": "broken"}] * 2
    (place / "photos.jsonl").write_bytes(damaged_lines(draw, rows))
    (place / "skipped.jsonl").write_bytes(damaged_lines(draw, left))
    return read_listing(place).part("train")


@door
def items(draw: random.Random, place: Path) -> Any:
    from fourm_lite.show.generated import digests, read_items, values_of

    rows = [{"id": "a", "rgb": "x.png", "caption": "a dog"}, {"caption": "b"}]
    (place / "items.jsonl").write_bytes(damaged_lines(draw, rows))
    return [
        (values_of(item), digests(item))
        for _, item in read_items(place / "items.jsonl", place / "out")
    ]


@door
def feature_list(draw: random.Random, place: Path) -> Any:
    from fourm_lite.embedders.features import FeatureStore

    (place / "index.json").write_bytes(damaged_json(draw, {"a": "a.npz", "b": "b.npz"}))
    return list(FeatureStore.open(place))


# Verbs ---------------------------------------------------------------------------------------

VERBS = (
    "info",
    "plan",
    "index-info",
    "split-features",
    "index-check",
    "search",
    "generate",
    "convert",
)
WORDS = (
    "--json", "--where", "year > 1", "-k", "3", "--out", "-o", "out", "--caption", "a dog",
    "-m", "mini", "--target", "tok_clip@224", "--steps", "1", "--plan", "a.npz", "idx", "x.jsonl",
    "-1", "10000000000000000000000", "", "\x1b[2J", "--", "-", "../x", "nan", "rgb=a.png",
    "--image", "a.png", "--items", "--input", "--max-bytes", "--debug", "a\x00b", "--rerank", "0",
)  # fmt: skip


@slow_door
def command_line(draw: random.Random, place: Path) -> Any:
    """Any words: a result, a usage error, or one sentence; never another exit."""
    from fourm_lite.cli import main

    photos(place)
    words = [draw.choice(VERBS), *(draw.choice(WORDS) for _ in range(draw.randint(0, 6)))]
    words = [w for w in words if w not in ("--debug", "mini")]
    code = None
    quiet = contextlib.redirect_stderr(io.StringIO())
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()), quiet:
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    assert code in (0, 2), words
