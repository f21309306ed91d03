"""MobileCLIP from Apple's own files: folding, conversion, names that are near, refusals."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from tiny_mobileclip import mobileclip_weights, save_mobileclip, words
from tiny_pipeline import photo
from torch.nn import functional as F

from fourm_lite.cli import main
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.mobileclip.layers import fold
from fourm_lite.errors import CheckpointError, ConfigError, FourMError


def norm(w, name, x):
    held = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *held)


def conv_norm(w, name, x, stride=1):
    kernel = w[f"{name}.conv.weight"]
    padding = tuple(side // 2 for side in kernel.shape[2:])
    groups = x.shape[1] // kernel.shape[1]
    return norm(w, f"{name}.bn", F.conv2d(x, kernel, None, stride, padding, 1, groups))


def test_a_folded_convolution_is_the_sum_of_its_branches():
    w, x = mobileclip_weights(), torch.randn(2, 16, 9, 9)
    folded = {k: v for k, v in fold(w).items() if "image" in k}
    at = "image_encoder.model."

    one = f"{at}patch_embed.2"
    branches = norm(w, f"{one}.rbr_skip", x) + conv_norm(w, f"{one}.rbr_conv.0", x)
    made = F.conv2d(x, folded[f"{one}.reparam_conv.weight"], folded[f"{one}.reparam_conv.bias"])
    assert torch.allclose(made, branches, atol=1e-4)

    mixer = f"{at}network.0.0.token_mixer"
    inner = sum(
        conv_norm(w, f"{mixer}.mixer.{branch}", x) for branch in ("rbr_conv.0", "rbr_scale")
    ) + norm(w, f"{mixer}.mixer.rbr_skip", x)
    want = x + w[f"{mixer}.layer_scale"] * (inner - norm(w, f"{mixer}.norm.rbr_skip", x))
    kernel = folded[f"{mixer}.reparam_conv.weight"]
    bias = folded[f"{mixer}.reparam_conv.bias"]
    assert torch.allclose(F.conv2d(x, kernel, bias, padding=1, groups=16), want, atol=1e-4)

    large = f"{at}network.1.proj.0"
    want = sum(conv_norm(w, f"{large}.{n}", x, 2) for n in ("lkb_origin", "small_conv"))
    kernel = folded[f"{large}.lkb_reparam.weight"]
    made = F.conv2d(x, kernel, folded[f"{large}.lkb_reparam.bias"], 2, 3, 1, 16)
    assert torch.allclose(made, want, atol=1e-4)
    assert not [k for k in folded if "rbr_" in k or ".bn." in k or "pe." in k]


def test_folding_twice_changes_nothing():
    once = fold(mobileclip_weights())
    twice = fold(once)

    assert once.keys() == twice.keys()
    assert all(torch.equal(once[k], twice[k]) for k in once)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save_mobileclip(tmp_path_factory.mktemp("clip") / "mobileclip_tiny.pt")


def opened(source, **options):
    return load_embedder(f"mobileclip:{source}", tokenizer=words, **options)


def test_what_is_converted_is_folded_and_gives_the_same(file, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(file), "-o", str(tmp_path / "ours"), "--json"])
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["family"] == "mobileclip"

    before, after = opened(file), opened(tmp_path / "ours")

    pictures, texts = [photo(1), photo(2, (300, 210))], ["a dog", "two cats"]
    assert np.allclose(before.embed_image(pictures), after.embed_image(pictures), atol=1e-6)
    assert np.allclose(before.embed_text(texts), after.embed_text(texts), atol=1e-6)
    assert before.logit_scale == after.logit_scale
    assert before.can == ("image", "text")
    assert before.preprocess.crop == (256, 256)
    assert len(np.unique(after.embed_text(texts).round(4), axis=0)) == 2


def test_files_that_do_not_fit_are_told_apart(file, tmp_path):
    broken = mobileclip_weights()
    del broken["image_encoder.model.network.3.0.token_mixer.proj.bias"]
    torch.save(broken, tmp_path / "broken.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save({"visual.w": torch.zeros(1), "logit_scale": torch.zeros(())}, tmp_path / "x.pt")
    torch.save(torch.zeros(1), tmp_path / "bare.pt")

    for name, match, error in (
        ("broken.pt", "does not fit", CheckpointError),
        ("other.pt", "holds no MobileCLIP", ConfigError),
        ("x.pt", "none of the published names", ConfigError),
        ("bare.pt", "no dictionary of tensors", CheckpointError),
        ("none.pt", "does not exist", CheckpointError),
    ):
        with pytest.raises(error, match=match):
            opened(tmp_path / name)


@pytest.mark.skipif(bool(importlib.util.find_spec("open_clip")), reason="open_clip is installed")
def test_without_a_vocabulary_pictures_are_embedded_and_words_are_refused(file):
    network = load_embedder(f"mobileclip:{file}")

    assert network.embed_image([photo(1)]).any()
    with pytest.raises(FourMError, match="pip install open_clip_torch"):
        network.embed_text(["a dog"])


def test_a_transformers_folder_gives_the_vocabulary_too(file, tmp_path):
    from tiny_networks import clip, save_network

    folder = save_network(clip, tmp_path / "clip")

    vectors = load_embedder(f"mobileclip:{file}", tokenizer=str(folder)).embed_text(["a cat", "a"])

    assert vectors.shape == (2, 12)
    assert not np.allclose(vectors[0], vectors[1])


def test_open_clip_never_offers_another_network(monkeypatch):
    zoo = pytest.importorskip("open_clip")

    for name in ("MobileCLIP-S0", "MobileCLIP-S3"):
        assert name not in zoo.list_models()
        with pytest.raises(ConfigError) as refused:
            load_embedder(f"open_clip:{name}/datacompdr")
        assert "Did you mean" not in str(refused.value)
        assert "mobileclip:FILE" in str(refused.value)
    with pytest.raises(ConfigError, match="Did you mean 'MobileCLIP-S1'"):
        load_embedder("open_clip:mobileclip_s1/datacompdr")


def test_files_in_open_clips_layout_take_the_preprocessing_that_they_were_trained_with(
    tmp_path, monkeypatch
):
    zoo = pytest.importorskip("open_clip")
    from tiny_networks import OPEN_CLIP

    for name in ("MobileCLIP2-S3", "MobileCLIP2-S0"):
        monkeypatch.setitem(zoo.factory._MODEL_CONFIGS, name, OPEN_CLIP)
    weights = zoo.create_model("MobileCLIP2-S3", pretrained=None).state_dict()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in weights.items()}},
        tmp_path / "mobileclip2_s3.pt",
    )
    torch.save(weights, tmp_path / "mine.pt")

    published = load_embedder(f"mobileclip:{tmp_path / 'mobileclip2_s3.pt'}")
    named = load_embedder(f"mobileclip:{tmp_path / 'mine.pt'}?architecture=MobileCLIP2-S0")

    assert published.preprocess.mean[0] > 0.4
    assert named.preprocess.mean == (0.0, 0.0, 0.0)
    assert published.preprocess.interpolation == "bilinear"
    assert published.preprocess.crop == (256, 256)
