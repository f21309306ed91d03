"""A joint space of a classifier and the names of its classes, without a caption of a photo."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_networks import save_timm
from tiny_spaces import COLOURS, save_photos, save_sentences

from fourm_lite.cli import main
from fourm_lite.embedders.class_names import read_names, space_of_classes
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.tower_outputs import ClassMean
from fourm_lite.errors import CheckpointError, ConfigError

NAMES = "\n".join(f"{name}\ta photo of a {name} thing" for name in COLOURS) + "\n"
TEXTS = [f"a photo of a {name}" for name in [*COLOURS, "crimson"]] * 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A classifier of three classes, a sentence encoder, photos, names and texts."""
    timm = pytest.importorskip("timm")
    root = tmp_path_factory.mktemp("classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = timm.create_model("resnet10t", num_classes=3).eval()
    save_timm(model, "resnet10t", {}, 32, root / "image")
    config = json.loads((root / "image" / "config.json").read_text())
    (root / "image" / "config.json").write_text(json.dumps({**config, "num_classes": 3}))
    save_sentences(root / "text")
    save_photos(root / "photos")
    (root / "names.tsv").write_text(NAMES)
    (root / "texts.txt").write_text("\n".join(TEXTS))
    return root


def image_of(place):
    return f"timm:{place / 'image'}?output=projected"


@pytest.fixture(scope="module")
def made(place):
    """The folder that the verb writes."""
    encoders = ["--image", image_of(place), "--text", f"sentence:{place / 'text'}"]
    files = ["--texts", place / "texts.txt", "--out", place / "made"]
    words = ["name-classes", place / "names.tsv", *encoders, *files]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code in (0, None)
    return place / "made"


def test_a_photo_is_the_mean_of_the_names_of_what_is_seen(place, made):
    photo = place / "photos" / "images" / "0.png"
    logits = load_embedder(image_of(place)).embed_image([photo], normalize=False)
    likely = torch.from_numpy(logits * np.float16(0.4)).softmax(-1).numpy()

    found = load_embedder(f"joint:{made}").embed_image([photo])

    mean = likely @ _classes(made)
    assert np.allclose(found, mean / np.linalg.norm(mean), atol=1e-3)


def test_a_name_is_nearest_to_its_own_class(place, made):
    space = load_embedder(f"joint:{made}")
    certain = ClassMean(3, space.dim)
    certain.classes.copy_(torch.tensor(_classes(made)))

    seen = certain(torch.eye(3) * 1e4).numpy()
    said = space.embed_text([f"a photo of a {name} thing" for name in COLOURS])

    assert ((said @ seen.T).argmax(axis=1) == np.arange(3)).all()


def _classes(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "heads.safetensors")["image.classes"].astype(np.float32)


def test_the_folder_may_be_moved(place, made, tmp_path):
    photo = place / "photos" / "images" / "1.png"
    before = load_embedder(f"joint:{made}").embed_image([photo])
    shutil.copytree(made, tmp_path / "moved")

    assert np.allclose(load_embedder(f"joint:{tmp_path / 'moved'}").embed_image([photo]), before)


def test_another_number_of_classes_is_refused_with_what_to_do(place, tmp_path):
    names = read_names(place / "names.tsv")

    with pytest.raises(ConfigError, match="output=projected"):
        space_of_classes(
            f"timm:{place / 'image'}", f"sentence:{place / 'text'}", names, TEXTS, tmp_path / "out"
        )
    with pytest.raises(ConfigError, match="at least 8"):
        space_of_classes(
            image_of(place), f"sentence:{place / 'text'}", names, TEXTS[:3], tmp_path / "out"
        )


def test_a_line_without_a_name_is_refused(tmp_path):
    (tmp_path / "names.tsv").write_text("a dog\n\t\na cat\n")

    with pytest.raises(ConfigError, match="line 2"):
        read_names(tmp_path / "names.tsv")


@pytest.mark.parametrize(
    "spec",
    ["timm:image?image_size=8", "timm:../image?output=projected", "timm:generation/../../image"],
)
def test_a_folder_names_no_other_place_and_no_other_option(made, tmp_path, spec):
    shutil.copytree(made, tmp_path / "space")
    told = json.loads((tmp_path / "space" / "joint_space.json").read_text())
    (tmp_path / "space" / "joint_space.json").write_text(json.dumps({**told, "image": spec}))

    with pytest.raises(CheckpointError, match="lies in it or ships"):
        load_embedder(f"joint:{tmp_path / 'space'}")


def test_what_is_not_shipped_cannot_be_named_as_such(made, tmp_path):
    shutil.copytree(made, tmp_path / "space")
    told = json.loads((tmp_path / "space" / "joint_space.json").read_text())
    spec = {"image": "timm:generation/models/nothing/image"}
    (tmp_path / "space" / "joint_space.json").write_text(json.dumps({**told, **spec}))

    with pytest.raises(CheckpointError, match="nothing is shipped"):
        load_embedder(f"joint:{tmp_path / 'space'}")
