"""Queries are spread over what photos vary in; galleries are not."""

from __future__ import annotations

import numpy as np
import pytest

from fourm_lite.cli import main
from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.files import write_npz
from fourm_lite.io.hub import resolve
from fourm_lite.io.layout import SPREAD
from fourm_lite.model.load import load_model
from fourm_lite.search.spaces import ModelSpace, open_space
from fourm_lite.search.whitening import QueryWhitening, fit_whitening, read_whitening
from fourm_lite.unit import unit

TARGET = "tok_joint_global"


def photos(count=400, width=12):
    scales = np.geomspace(8.0, 0.5, width)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(width, width)))[0]
    return unit((np.random.default_rng(0).normal(size=(count, width)) * scales @ turn).astype("f4"))


def mini_without_a_spread(root):
    source, folder = resolve("mini"), root / "model"
    load_model(source).save(folder)
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


def test_half_a_power_makes_the_variances_of_kept_axes_alike():
    rows = photos()
    spread = fit_whitening(rows, TARGET, axes=6, power=0.5)

    along = ((rows @ spread.axes.T) * (spread.variance / spread.variance[-1]) ** -0.5).var(axis=0)
    made = spread(rows)

    assert np.allclose(spread.axes @ spread.axes.T, np.eye(6), atol=1e-5)
    assert np.all(np.diff(spread.variance) <= 0)
    assert np.allclose(along / along.mean(), 1.0, atol=0.05)
    assert np.allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-5)
    # What is not along an axis is only scaled with the whole.
    rest = np.eye(12) - spread.axes.T @ spread.axes
    assert np.allclose(unit(made @ rest), unit(rows @ rest), atol=1e-4)


def test_no_power_changes_nothing():
    rows = photos()

    assert np.allclose(fit_whitening(rows, TARGET, axes=6, power=0.0)(rows), rows, atol=1e-6)


def test_it_is_kept_beside_a_model_and_read_for_its_target_alone(tmp_path):
    made = fit_whitening(photos(), TARGET, axes=6, power=0.25)
    made.save(tmp_path)

    found = read_whitening(tmp_path, TARGET)

    assert found is not None
    assert found.power == 0.25
    assert np.allclose(found(photos()), made(photos()), atol=1e-2)
    assert read_whitening(tmp_path, "tok_other") is None
    assert read_whitening(tmp_path / "none", TARGET) is None
    assert read_whitening(None, TARGET) is None


def test_a_damaged_file_and_wrong_numbers_are_told(tmp_path):
    (tmp_path / SPREAD).write_bytes(b"nothing")

    with pytest.raises(CheckpointError, match="fourm-lite spread"):
        read_whitening(tmp_path, TARGET)
    with pytest.raises(ConfigError, match="fewer --axes"):
        fit_whitening(photos(count=5), TARGET, axes=6)
    with pytest.raises(ConfigError, match=r"power in 0\.\.1"):
        QueryWhitening(TARGET, np.eye(3, dtype="f4"), np.ones(3, "f4"), power=2.0)
    with pytest.raises(ConfigError, match="K variances"):
        QueryWhitening(TARGET, np.eye(3, dtype="f4"), np.ones(2, "f4"))


def test_the_verb_teaches_a_model_whose_queries_then_differ_and_galleries_do_not(tmp_path, capsys):
    folder = mini_without_a_spread(tmp_path)
    values = np.random.default_rng(0).gamma(1.0, size=(70, 1, 512)).astype(np.float32)
    ids = np.array([str(i) for i in range(70)])
    write_npz(tmp_path / "labels" / "net" / "shard-00000.npz", {"ids": ids, "values": values})
    words = ["spread", str(tmp_path / "labels"), "--label", "net", "--model", str(folder)]

    with pytest.raises(SystemExit) as stopped:
        main([*words, "--power", "0.4", "--axes", "16"])
    assert stopped.value.code == 0

    space, plain = open_space(str(folder)), open_space(str(folder), spread=0)
    assert isinstance(space, ModelSpace)
    assert isinstance(plain, ModelSpace)
    assert (space.whitening.power, plain.whitening) == (0.4, None)
    asked, other = (
        space.encode_query([{"caption": "a dog"}]),
        plain.encode_query([{"caption": "a dog"}]),
    )
    assert not np.allclose(asked, other, atol=1e-3)
    assert np.allclose(asked, space.whitening(other), atol=1e-5)
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))
    assert np.array_equal(space.encode_document([picture])[0], plain.encode_document([picture])[0])
    # What is seen is not spread: a photo finds itself. Items of both kinds may stand in one list.
    both = space.encode_query([{"rgb": picture}, {"caption": "a dog"}])
    assert np.allclose(both[0], space.encode_document([picture])[0][0], atol=1e-5)
    assert np.allclose(both[1], asked[0], atol=1e-5)


def test_a_spread_without_a_centre_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="without centring"):
        open_space("mini", center=False, spread=0.5)

    assert open_space("mini", center=False).whitening is None


def test_a_spread_that_is_not_there_cannot_be_asked_for(tmp_path):
    folder = mini_without_a_spread(tmp_path)

    with pytest.raises(FourMError, match="nothing to whiten them by is kept beside the model"):
        open_space(str(folder), spread=0.3)


def test_a_model_that_is_no_folder_of_ones_own_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["spread", str(tmp_path), "--label", "joint_global", "--model", "mini"])

    assert "copy a shipped or downloaded model" in " ".join(capsys.readouterr().err.split())
