"""What an earlier version stored is opened and continued: `make_old.py` tells how it was made."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from compat.make_old import PACKED, ROOT
from compat.network import small_network
from safetensors.torch import load_file
from tiny_training import classifying, course
from verbs import exit_code

from fourm_lite import register_embedding
from fourm_lite.embedders import image_configs
from fourm_lite.embedders.former import former_texts
from fourm_lite.errors import ConfigError
from fourm_lite.finetune.task import RECORD, Validations
from fourm_lite.search.engine import require_same_space
from fourm_lite.search.gallery import index_photos, open_index
from fourm_lite.search.index.index import Index
from fourm_lite.search.space import DualEncoderSpace
from fourm_lite.search.spaces import ModelSpace, open_space
from fourm_lite.training.loop import fit

STORED = Path(__file__).parent / "stored"
TEXTS = json.loads((STORED / "preprocessing.json").read_text())
INDEXES = {"six": "six", "codes": "six", "six_tar": "six.tar", "six_jsonl": "six.jsonl",
           "gallery": "six", "network": "six"}  # fmt: skip


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory):
    """What was stored, as it was packed."""
    place = tmp_path_factory.mktemp("packed")
    with tarfile.open(STORED / PACKED) as packed:
        packed.extractall(place, filter="data")
    return place / "stored"


@pytest.fixture
def stored(unpacked, tmp_path):
    """A copy, with the paths of where it lies now."""
    root = tmp_path / "stored"
    shutil.copytree(unpacked, root)
    for path in [*root.rglob("*.json"), *root.rglob("*.jsonl")]:
        text = path.read_text(encoding="utf-8")
        if ROOT in text:
            path.write_text(text.replace(ROOT, str(root)), encoding="utf-8")
    return root


def space_for(name, root, seen=None):
    if name == "network":
        return open_space(small_network(seen))
    gallery = small_network(seen) if name == "gallery" else "model"
    return open_space(root / "pipeline", gallery=gallery)


def vectors_of(index):
    ids = [name for batch in index.scan(["id"]) for name in batch.column("id").to_pylist()]
    return dict(
        zip(ids, index.codes(ids) if "codes" in index.columns else index.vectors(ids), strict=True)
    )


def refuse(*args, **options):
    raise AssertionError("a photo was embedded again")


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_of_before_is_continued_without_embedding_its_photos_again(
    stored, monkeypatch, name
):
    space, place = space_for(name, stored), stored / "idx" / name
    decode = space.decode_codes if isinstance(space, ModelSpace) else None
    before = vectors_of(Index.open(place, decode=decode))
    kind = ModelSpace if isinstance(space, ModelSpace) else DualEncoderSpace
    monkeypatch.setattr(kind, "encode_document", refuse)

    index = open_index(place, space, codes_only=name == "codes")
    report = index_photos([stored / INDEXES[name]], index, space)

    after = vectors_of(index)
    assert len(before) == 6
    assert list(after) == list(before)
    assert all(np.array_equal(after[i], before[i]) for i in before)
    assert report.seen == 6


@pytest.mark.parametrize("name", INDEXES)
def test_a_photo_that_is_added_to_an_index_of_before_is_embedded_alone(stored, name):
    seen: list[int] = []
    space, place = space_for(name, stored, seen), stored / "idx" / name
    new = stored / "photos" / "images" / "drawing_020.png"

    index = open_index(place, space, codes_only=name == "codes")
    index_photos([stored / INDEXES[name], new], index, space)

    assert len(index) == 7
    if name in ("gallery", "network"):
        assert 1 <= sum(seen) <= 2  # the new one, and one that tells the width


def test_only_writing_renews_the_fingerprints(stored):
    place = stored / "idx" / "six"
    text, space = (place / "manifest.json").read_text(), space_for("six", stored)

    opened = open_index(place, space)

    assert (place / "manifest.json").read_text() == text
    assert opened.manifest.fingerprints != space.fingerprints
    index_photos([stored / "six"], opened, space)
    assert Index.open(place).manifest.fingerprints == space.fingerprints


def test_the_former_form_is_not_worked_out_where_todays_fits(stored, monkeypatch):
    place, space = stored / "idx" / "six", space_for("six", stored)
    index_photos([stored / "six"], open_index(place, space), space)
    monkeypatch.setattr("fourm_lite.search.spaces.ModelSpace.former_fingerprints", refuse)

    open_index(place, space)


@pytest.mark.parametrize("name", ["network", "gallery"])
def test_another_network_is_still_refused(stored, name):
    space = space_for(name, stored)
    network = space.embedder if name == "network" else space.teacher
    network.facts["output"] = "another"

    with pytest.raises(ConfigError, match="an earlier version fed the network other pixels"):
        open_index(stored / "idx" / name, space)


def test_an_index_of_before_takes_the_queries_of_today(stored):
    space = space_for("network", stored)
    index = Index.open(stored / "idx" / "network")
    photo = stored / "six" / "drawing_003.png"

    require_same_space(index.manifest, space)
    hits = index.search(space.encode_query([{"rgb": photo}])[0], k=1)

    assert hits.ids == ["drawing_003.png"]
    assert hits.scores[0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("row", TEXTS, ids=lambda r: f"{r['library']}-{str(r['config'])[:40]}")
def test_preprocessing_is_recognised_where_its_pixels_are_those_of_before(row):
    read = getattr(
        image_configs, "preset" if row["library"] == "preset" else f"from_{row['library']}"
    )

    found = former_texts(read(row["config"]))

    was_wrong = "ConvNext" in str(row["config"])
    assert (row["text"] in found) is not was_wrong


def test_labels_and_tokens_of_before_are_kept(stored):
    made = [*stored.glob("labels/*/*.npz"), *stored.glob("tokens/*/*.tar")]
    for path in made:
        os.utime(path, (1, 1))
    rgb = stored / "pipeline" / "tokenizers" / "rgb"

    assert not exit_code("pseudolabel", stored / "six", "-o", stored / "labels", "--size", 32,
        "--labels", "canny_edge,color_palette")  # fmt: skip
    assert not exit_code("tokenize", stored / "labels", "--photos", stored / "six",
        "-o", stored / "tokens", "-t", f"tok={rgb}#photos")  # fmt: skip

    assert len(made) >= 4
    assert all(path.stat().st_mtime == 1 for path in made)


def test_training_of_before_ends_as_if_it_had_not_been_stopped(stored, tmp_path):
    task, stream = classifying()
    fit(task, stream, course(stored / "run"), resume=True)
    whole, stream = classifying()
    fit(whole, stream, course(tmp_path / "whole"))

    last = [sorted(folder.glob("step-*"))[-1] for folder in (stored / "run", tmp_path / "whole")]
    assert last[0].name == "step-00000010"
    ours, theirs = (load_file(place / "model.safetensors") for place in last)
    # the stored steps were made on a CPU of another kind, whose kernels round otherwise
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_validations_of_a_finetuning_of_before_count(tmp_path):
    text = '{"best": 0.75, "at": 2, "seen": [0.5, 0.75, 0.25]}'  # as commit 249b6e1 wrote it
    (tmp_path / RECORD).write_text(text)

    found = Validations.read(tmp_path)

    assert (found.best, found.best_at, found.since_best) == (0.75, 2, 1)


def test_an_embedding_that_was_being_added_goes_on_with_its_vectors(stored):
    seen: list[int] = []
    vectors = next((stored / "grown").rglob("vectors/*.npz"))
    os.utime(vectors, (1, 1))

    added = register_embedding(
        "net", small_network(seen), stored / "photos", out=stored / "grown",
        model=stored / "pipeline", steps=3, batch_size=8, tokenizer_steps=4, tokens=4,
    )  # fmt: skip

    assert {"photos"} <= set(added.skipped)
    assert vectors.stat().st_mtime == 1
    assert sum(seen) <= 5  # what tells the width
