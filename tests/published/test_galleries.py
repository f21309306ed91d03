"""`--gallery dinov2`: the network that made an embedding opens by its short name."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hub import add_repository, without

from fourm_lite import FourMPipeline
from fourm_lite.cli import main
from fourm_lite.demo.examples import draw
from fourm_lite.embedders.image_configs import preset
from fourm_lite.embedders.imagebind import ImageBindConfig, ImageBindVision
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, ConfigError, NotFetchedError
from fourm_lite.search.spaces import open_space

transformers = pytest.importorskip("transformers")

MODEL = "EPFL-VILAB/4M-21_B"
DINOV2 = "facebook/dinov2-base"
ANOTHER = "EPFL-VILAB/4M_tokenizers_human-poses_1k_8"


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    """A folder of each network: small, random, of the published width."""
    place = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 12, "mlp_ratio": 1, "image_size": 518}
    config = transformers.Dinov2Config(hidden_size=768, patch_size=14, **sizes)
    transformers.Dinov2Model(config).save_pretrained(place / "dinov2")
    trunk = ImageBindConfig(depth=1, mlp_ratio=1)
    (place / "imagebind").mkdir()
    told = {**vars(trunk), "format": 1, "family": "imagebind"}
    (place / "imagebind" / "config.json").write_text(json.dumps(told))
    state = {name: value * 0.1 for name, value in ImageBindVision(trunk).state_dict().items()}
    save_file(state, place / "imagebind" / "model.safetensors")
    return {name: place / name for name in ("dinov2", "imagebind")}


@pytest.fixture
def fetched(published, networks, monkeypatch, tmp_path):
    """The hub's cache with DINOv2 in it."""
    cache = without(published, ANOTHER, tmp_path / "hub")
    config = json.loads((networks["dinov2"] / "config.json").read_text())
    add_repository(cache, DINOV2, config, load_file(networks["dinov2"] / "model.safetensors"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, color in enumerate(("red", "blue", "green")):
        draw(color, "circle", "white", 0.5, size=224).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def expected(networks, name, photos):
    """What the network says of photos that are prepared as 4M prepared them."""
    kind = {"dinov2": "hf", "imagebind": "imagebind"}[name]
    spec = f"{kind}:{networks[name]}"
    prepared = preset("imagenet", size=224)
    network = load_embedder(spec, output="class_token", preprocess=prepared)
    assert network.preprocess.crop == (224, 224)
    return network.embed_image(sorted(photos.iterdir()))


@pytest.mark.parametrize("name", ["dinov2", "imagebind"])
def test_a_short_name_opens_the_network_of_its_embedding_as_4m_fed_it(
    name, fetched, networks, photos
):
    pipe = FourMPipeline.from_pretrained(MODEL)
    spec = name if name == "dinov2" else f"{name}={networks[name]}"

    found = pipe.embed([{"rgb": p} for p in sorted(photos.iterdir())], teacher=spec)
    space = open_space(pipe, gallery=spec)

    assert np.allclose(found, expected(networks, name, photos), atol=1e-6)
    assert space.target.name == f"tok_{name}_global"
    assert np.allclose(space.encode_document(sorted(photos.iterdir()))[0], found, atol=1e-6)


def test_words_are_searched_among_the_networks_own_vectors(fetched, photos, tmp_path, capsys):
    out = tmp_path / "index"

    for line in (
        f"index {photos} -o {out} --model {MODEL} --gallery dinov2",
        f"search {out} --caption 'a red circle' --json",
    ):
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(line))
        assert stopped.value.code == 0

    shown = capsys.readouterr().out
    assert len(json.loads(shown[shown.index("{") :])["hits"]) == 3


def test_a_network_of_another_embedding_is_refused(fetched, networks):
    pipe = FourMPipeline.from_pretrained(MODEL)

    with pytest.raises(ConfigError, match="made tok_dinov2_global, not 'tok_imagebind_global'"):
        open_space(pipe, gallery="dinov2", target="tok_imagebind_global")
    with pytest.raises(ConfigError, match="CLIP-B/16 made none of this model's global"):
        open_space(pipe, gallery="clip")
    with pytest.raises(ConfigError, match="this model is none"):
        open_space("mini", gallery="dinov2")


def test_the_folder_of_another_network_is_refused_before_an_index_is_made(
    fetched, networks, photos, tmp_path, capsys
):
    pipe = FourMPipeline.from_pretrained(MODEL)
    as_clip = tmp_path / "clip"
    shutil.copytree(networks["dinov2"], as_clip)
    config = json.loads((as_clip / "config.json").read_text())
    (as_clip / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))

    for spec in (f"dinov2={networks['imagebind']}", f"imagebind={networks['dinov2']}",
                 f"dinov2={as_clip}"):  # fmt: skip
        with pytest.raises(ConfigError, match="holds another network"):
            pipe.embed({"rgb": next(photos.iterdir())}, teacher=spec)
    with pytest.raises(ConfigError, match=r"expected dinov2, imagebind.*Did you mean 'dinov2'"):
        open_space(pipe, gallery="dinov3")
    raw = f"hf:{networks['dinov2']}?output=class_token&preprocess=imagenet"
    line = f"index {photos} -o {tmp_path / 'idx'} --model {MODEL} --target tok_imagebind_global"
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(f"{line} --gallery '{raw}'"))
    assert stopped.value.code == 2
    assert "width 768" in capsys.readouterr().err
    assert not (tmp_path / "idx").exists()


def test_what_is_not_here_is_told_with_what_to_do(published, tmp_path):
    pipe = FourMPipeline.from_pretrained(MODEL)
    (tmp_path / "imagebind_huge.pth").touch()

    with pytest.raises(NotFetchedError, match=f"fourm-lite download {DINOV2}"):
        pipe.embed({"rgb": "x.png"}, teacher="dinov2")
    with pytest.raises(CheckpointError, match=r"fourm-lite convert FILE\.pth.*imagebind=FOLDER"):
        open_space(pipe, gallery="imagebind")
    with pytest.raises(CheckpointError, match="fourm-lite convert FILE -o FOLDER"):
        open_space(pipe, gallery=f"imagebind={tmp_path / 'imagebind_huge.pth'}")
