"""Networks and indexes that do not do, through the command line: one clear message each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import clip, dinov2, save_network
from tiny_pipeline import photo

from fourm_lite.cli import main
from fourm_lite.embedders.load import wrap_callable


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "Traceback" not in err
    return " ".join(err.split())


def made(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 0, capsys.readouterr().err


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        photo(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return save_network(clip, tmp_path_factory.mktemp("twin") / "clip")


@pytest.fixture(scope="module")
def image_only(tmp_path_factory):
    return save_network(dinov2, tmp_path_factory.mktemp("net") / "dinov2")


def test_a_network_of_changing_width_makes_no_index(capsys, monkeypatch, photos, tmp_path):
    widths = iter(range(5, 50))

    def changing(pictures):
        return np.ones((len(pictures), next(widths)), np.float32)

    # No published format of networks writes one that does this; the command line's way is real
    monkeypatch.setattr(
        "fourm_lite.embedders.onnx.load_onnx", lambda source: wrap_callable(changing)
    )

    message = refused(
        capsys, "index", photos, "-o", tmp_path / "idx", "--model", "onnx:net.onnx",
        "--batch-size", 1,
    )  # fmt: skip

    assert "must keep one width" in message


def test_nan_weights_make_no_index(capsys, photos, tmp_path):
    def broken():
        model, processor, *_ = clip()
        model.visual_projection.weight.data[0, 0] = torch.nan
        return model, processor

    net = save_network(broken, tmp_path / "net")

    message = refused(capsys, "index", photos, "-o", tmp_path / "idx", "--model", f"hf:{net}")

    assert "NaN or infinite" in message


def test_an_index_of_another_space_is_not_asked(capsys, photos, twin, tmp_path):
    other = save_network(clip, tmp_path / "other", seed=1)
    made(capsys, "index", photos, "-o", tmp_path / "idx", "--model", f"hf:{twin}")

    ask = refused(
        capsys, "search", tmp_path / "idx", "--caption", "a dog", "--model", f"hf:{other}"
    )
    add = refused(capsys, "index", photos, "-o", tmp_path / "idx", "--model", f"hf:{other}")

    assert "network" in ask
    assert "network" in add


def test_own_vectors_of_another_width_are_not_asked(capsys, twin, tmp_path):
    np.save(tmp_path / "v.npy", np.eye(7, dtype=np.float32))

    message = refused(
        capsys, "search", tmp_path / "v.npy", "--caption", "a dog", "--model", f"hf:{twin}"
    )

    assert "7" in message
    assert "width" in message


def test_words_for_an_image_only_network_are_refused(capsys, photos, image_only, tmp_path):
    made(capsys, "index", photos, "-o", tmp_path / "idx", "--model", f"hf:{image_only}")

    message = refused(capsys, "search", tmp_path / "idx", "--caption", "a dog")

    assert "cannot embed text" in message
    assert "it embeds image" in message
