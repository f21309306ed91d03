"""The joint spaces that ship find photographs that they have not learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fourm_lite.embedders.load import load_embedder

PHOTOS = Path(__file__).resolve().parents[2] / "fourm_lite" / "demo" / "photos"


@pytest.fixture(scope="module")
def space():
    pytest.importorskip("onnxruntime")
    return load_embedder("joint:joint_space")


def test_captions_find_their_photographs(space):
    rows = [json.loads(line) for line in (PHOTOS / "captions.jsonl").read_text().splitlines()]
    some = rows[::3]
    pictures = [PHOTOS / row["file"] for row in some]

    scores = space.embed_text([row["captions"][0] for row in some]) @ space.embed_image(pictures).T

    places = (scores > scores.diagonal()[:, None]).sum(axis=1)
    assert np.mean(places == 0) >= 0.5
    assert np.mean(places < 3) >= 0.7


def test_words_that_no_caption_had_are_understood_by_their_kin(space):
    folder = PHOTOS.parents[2] / "generation" / "models" / "joint_space"
    known = json.loads((folder / "joint_space.json").read_text())["words"]
    asked = ["yacht", "whippet"]
    assert not set(asked) & set(known)

    cosines = space.embed_text(asked) @ space.embed_text(["a boat on the water", "a dog"]).T

    assert (cosines.argmax(axis=1) == [0, 1]).all()


def test_captions_find_their_photographs_where_no_caption_of_a_photo_was_learnt():
    pytest.importorskip("onnxruntime")
    space = load_embedder("joint:mini_open")
    some = [json.loads(line) for line in (PHOTOS / "captions.jsonl").read_text().splitlines()][::3]

    texts = space.embed_text([row["captions"][0] for row in some])
    scores = texts @ space.embed_image([PHOTOS / row["file"] for row in some]).T

    places = (scores > scores.diagonal()[:, None]).sum(axis=1)
    assert np.mean(places < 3) >= 0.5


def test_encoders_that_two_spaces_share_ship_once():
    folder = PHOTOS.parents[2] / "generation" / "models"
    told = json.loads((folder / "mini_open" / "joint_space.json").read_text())

    assert told["image"].startswith("timm:generation/models/joint_space/image")
    assert told["text"] == "sentence:generation/models/joint_space/text"
    assert sum(f.stat().st_size for f in (folder / "mini_open").iterdir()) < 2e6
