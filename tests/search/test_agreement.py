"""What a precision costs is measured beside float32, said once, and asked for in every verb."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from PIL import Image

from fourm_lite.cli import options
from fourm_lite.cli.app import VERBS
from fourm_lite.demo.examples import shipped_pictures
from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.precision import agreement, measure_once
from fourm_lite.nn.cpu_linear import can_int8
from fourm_lite.search.spaces import open_model_space

pytestmark = pytest.mark.skipif(not can_int8(), reason="no int8 products here")
NOT_OPENED = {"info", "demo", "train", "finetune", "add-embedding", "spread", "export"}
"""Verbs with a --model whose answers it does not give, or that train it, or have forms."""


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)) for _ in range(5)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_agreement_is_that_of_the_vectors(space, photos, dtype):
    folder = space.pipe.folder

    found = agreement(folder, dtype, photos)

    rows = [
        open_model_space(folder, dtype=d).pipe.embed([{"rgb": p} for p in photos])
        for d in ("float32", dtype)
    ]
    cosines = (rows[0] * rows[1]).sum(axis=1)
    assert found.least == pytest.approx(cosines.min(), abs=1e-5)
    assert found.mean == pytest.approx(cosines.mean(), abs=1e-5)
    assert 0.9 < found.least <= 1.00001
    assert found.same_first <= found.photos == 5


def test_it_is_measured_once_for_a_model_and_a_precision(space, photos, tmp_path):
    folder = str(space.pipe.folder)

    def asked(dtype):
        return measure_once(folder, dtype, lambda: photos, cache=tmp_path)

    assert asked("int8") is not None
    assert asked("int8") is None
    assert asked("bfloat16") is not None
    (tmp_path / "precisions.json").write_text("{")
    assert asked("int8") is not None


def test_the_command_line_tells_it_aside_once(space, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path))

    for _ in range(2):
        options.tell_precision("int8", space.pipe.folder)
    options.tell_precision("auto", space.pipe.folder)
    options.tell_precision("int8", "hf:someone/else")

    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "int8: cosine of embeddings" in err
    assert "of 12 photos" in err


def test_every_verb_that_answers_by_a_model_takes_a_dtype():
    without = {
        name for name, verb in VERBS.items()
        if {"model"} <= set(inspect.signature(verb.run).parameters)
        and "dtype" not in inspect.signature(verb.run).parameters
    }  # fmt: skip

    assert without - NOT_OPENED <= {"evaluate tokenizers", "pseudolabel", "download", "push"}


def test_an_unknown_dtype_is_refused_before_a_model_is_opened():
    with pytest.raises(ConfigError, match="got 'int4'"):
        options.dtype_of("int4")


def test_photos_that_ship_are_opened():
    assert len({p.size for p in shipped_pictures(3)}) >= 1
    assert all(p.width > 60 for p in shipped_pictures(3))
