"""A joint space of two encoders: made by a recipe, stopped and gone on with, opened and moved."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_spaces import COLOURS, save_image_encoder, save_photos, save_sentences
from verbs import exit_code

from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.training.joint_heads import JointSpaceRecipe, joint_space_training
from fourm_lite.training.loop import fit


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos and both encoders."""
    root = tmp_path_factory.mktemp("space")
    save_photos(root / "photos")
    save_image_encoder(root / "image")
    save_sentences(root / "text")
    return root


def write_recipe(root, out, *, text=True, least=2, steps=60, more=""):
    path = root / f"{out}.toml"
    path.write_text(f"""
[joint_space]
image = "timm:{root / "image"}"
text = "{f"sentence:{root / 'text'}" if text else ""}"
captions = "{root / "photos" / "captions.jsonl"}"
labels = "{root / "labels"}"
width = 16
least = {least}
batch_size = 15
dropout = 0.0
{more}
[train]
out = "{root / out}"
steps = {steps}
save_every = 20
eval_every = 30
[train.optim]
lr = 1e-2
weight_decay = 0.0
""")
    return path


@pytest.fixture(scope="module")
def made(place):
    """A space that knows its three colours."""
    assert not exit_code("train", write_recipe(place, "made"))
    return place / "made" / "final"


def finds_colours(space, root):
    texts = [f"a photo of a {name} thing" for name in COLOURS]
    photos = [root / "photos" / "images" / f"{15 + i}.png" for i in range(3)]
    cosines = space.embed_text(texts) @ space.embed_image(photos).T
    return bool((cosines.argmax(axis=1) == np.arange(3)).all())


@pytest.mark.parametrize(("text", "least"), [(True, 2), (True, 0), (False, 2)])
def test_words_find_photos_that_were_not_trained_on(place, text, least):
    out = f"run_{text}_{least}"
    assert not exit_code("train", write_recipe(place, out, text=text, least=least))

    assert finds_colours(load_embedder(f"joint:{place / out / 'final'}"), place)


def test_the_space_is_whole_in_its_folder_and_can_be_moved(made, place, tmp_path):
    before = load_embedder(f"joint:{made}")
    moved = (tmp_path / "elsewhere").resolve()
    made.rename(moved)
    try:
        after = load_embedder(f"joint:{moved}")
        assert after.space.fingerprint == before.space.fingerprint
        assert finds_colours(after, place)
        assert after.logit_scale.scale > 1
    finally:
        moved.rename(made)


def test_a_run_that_was_stopped_gives_the_same_space(place, made):
    recipe = JointSpaceRecipe.read(write_recipe(place, "stopped"))

    def stop(step, steps, numbers):
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(*joint_space_training(recipe), recipe.train, progress=stop)
    assert not exit_code("train", write_recipe(place, "stopped"), "--resume")

    vectors = [load_embedder(f"joint:{folder}").embed_text(["red thing", "a crimson photo"])
               for folder in (made, place / "stopped" / "final")]  # fmt: skip
    np.testing.assert_array_equal(*vectors)


def test_what_the_encoders_said_is_not_asked_again(place, made, monkeypatch):
    import fourm_lite.embedders.timm_networks as networks

    def refuse(*_):
        raise AssertionError("the network was asked")

    before = networks._image_tower
    monkeypatch.setattr(networks, "_image_tower", lambda *a: _once(before(*a), refuse))

    task, _ = joint_space_training(JointSpaceRecipe.read(write_recipe(place, "cached")))

    assert task.model.image.linear.in_features == 512


def _once(tower, refuse):
    """A tower that answers one grey picture, as the width is asked for, and nothing else."""
    return lambda pictures: tower(pictures) if len(pictures) == 1 else refuse()


def test_unknown_words_are_left_to_the_sentence_encoder(made, place):
    space = load_embedder(f"joint:{made}")

    vectors = space.embed_text(["crimson", "thing crimson", "photo"])

    assert np.isfinite(vectors).all()
    words_alone = write_recipe(place, "words", text=False)
    assert not exit_code("train", words_alone)
    with pytest.raises(FourMError, match="zero and has no direction"):
        load_embedder(f"joint:{place / 'words' / 'final'}").embed_text("crimson")


def test_a_folder_opens_nothing_outside_of_itself_unless_told(made, place, tmp_path):
    import shutil

    folder = shutil.copytree(made, tmp_path / "space")
    told = json.loads((folder / "joint_space.json").read_text())
    outside = {**told, "image": f"timm:{place / 'image'}"}
    (folder / "joint_space.json").write_text(json.dumps(outside))

    with pytest.raises(CheckpointError, match="what lies in it"):
        load_embedder(f"joint:{folder}")
    given = load_embedder(f"joint:{folder}?image=timm:{place / 'image'}")
    assert finds_colours(given, place)
    (folder / "joint_space.json").write_text(json.dumps({**told, "image": ""}))
    with pytest.raises(ConfigError, match="say where it is"):
        load_embedder(f"joint:{folder}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format 9"),
        ({"words": ["a"], "idf": []}, "one weight for each"),
        ({"words": [1]}, "lists of texts"),
        ({"words": ["a"], "idf": [1.0]}, "does not fit"),
    ],
)
def test_a_damaged_folder_is_told(made, tmp_path, change, message):
    import shutil

    folder = shutil.copytree(made, tmp_path / "space")
    told = json.loads((folder / "joint_space.json").read_text())
    (folder / "joint_space.json").write_text(json.dumps({**told, **change}))

    with pytest.raises(CheckpointError, match=message):
        load_embedder(f"joint:{folder}")


def test_a_space_becomes_the_gallery_of_a_search(made, place, tmp_path):
    assert not exit_code("evaluate", "retrieval", "--model", f"joint:{made}",
        "--data", place / "photos", "--split", "val", "--json", tmp_path / "out.json")  # fmt: skip

    assert json.loads((tmp_path / "out.json").read_text())["text_to_image"]["R@1"] == 1.0
