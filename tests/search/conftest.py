"""A tiny model with its tokenizers, drawn photos with captions, and an index of them."""

import json

import numpy as np
import pytest
from tiny_pipeline import photo, save_pipeline

from fourm_lite import FourMPipeline
from fourm_lite.search.gallery import Ingest, index_photos, open_index
from fourm_lite.search.spaces import open_space

CAPTIONS = ("a red circle", "a blue square", "two dogs", "a green circle on the left")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def pipe(model_folder):
    return FourMPipeline.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def space(pipe):
    return open_space(pipe)


def write_pack(folder, count=12, split="test"):
    """A folder of drawn photos with captions.jsonl."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        name = f"images/{split}{i:02d}.png"
        photo(i).save(folder / name)
        texts = [CAPTIONS[i % 4], f"{CAPTIONS[(i + 1) % 4]} {'a ' * (i % 3)}"]
        rows.append({"id": f"{split}{i:02d}", "file": name, "captions": texts, "split": split})
    with (folder / "captions.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, 12, "test")
    return write_pack(folder, 8, "val")


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory, model_folder, pack):
    """An index of the pack's photos, made from its list, so that rows have columns."""
    path = tmp_path_factory.mktemp("index") / "photos.idx"
    space = open_space(model_folder)
    index = open_index(path, space)
    index_photos([pack / "captions.jsonl"], index, space, Ingest(batch_size=5))
    return path


def network(pictures):
    """A network over pictures whose vectors are 10 wide, as those of the tiny tokenizer."""
    small = [np.asarray(p.convert("RGB").resize((4, 1)), np.float32).reshape(-1) for p in pictures]
    return np.stack(small)[:, :10] / 50
