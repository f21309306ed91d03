from __future__ import annotations

import pytest

from fourm_lite.errors import ConfigError, UnknownNameError
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.codecs import codec_of
from fourm_lite.modalities.spec import Modality, Registry

THERMAL = Modality(
    name="tok_thermal@224", kind="grid", grid=(14, 14), max_tokens=196, vocab_size=4096
)


@pytest.mark.parametrize("name", MODALITIES)
def test_every_entry_survives_its_json_form(name):
    entry = MODALITIES[name]

    assert Modality.from_dict(entry.to_dict()) == entry


@pytest.mark.parametrize("name", MODALITIES)
def test_everything_is_derived_from_the_entry(name):
    entry = MODALITIES[name]

    assert callable(codec_of(entry).read)
    assert callable(codec_of(entry).picture)
    assert (entry.scheme is not None) == (entry.kind in ("grid", "sequence"))
    assert entry.is_target <= (entry.scheme is not None)


@pytest.mark.parametrize(
    "stem", ["rgb", "tok_rgb", "tok_depth", "tok_normal", "tok_semseg", "tok_clip"]
)
def test_another_resolution_is_the_entry_of_that_name(stem):
    assert MODALITIES[f"{stem}@224"].at(448) == MODALITIES[f"{stem}@448"]


def test_a_resolution_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="multiple"):
        MODALITIES["tok_dinov2@224"].at(225)
    with pytest.raises(ConfigError, match="no patches"):
        MODALITIES["caption"].at(448)


def test_global_tokens_follow_the_size_of_the_model():
    entry = MODALITIES["tok_dinov2_global"]

    assert entry.max_tokens == 16
    assert entry.sized(448).max_tokens == 64


def test_a_clash_raises_and_changes_nothing():
    registry = Registry([THERMAL])
    other = Modality(**{**THERMAL.__dict__, "vocab_size": 8})
    new = Modality(**{**THERMAL.__dict__, "name": "tok_new@224"})

    with pytest.raises(ConfigError, match="already registered"):
        registry.register(new, other)

    assert list(registry) == ["tok_thermal@224"]
    registry.register(THERMAL)
    registry.register(other, replace=True)
    assert registry["tok_thermal@224"].vocab_size == 8


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'tok_depth@224'"):
        MODALITIES["tok_dept@224"]
    assert MODALITIES.get("nothing") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": None}, "positive vocab_size"),
        ({"grid": (14, 13)}, "cells are its max_tokens"),
        ({"max_tokens": 0, "grid": (0, 0)}, "max_tokens >= 1"),
        ({"name": ""}, "needs a name"),
        ({"kind": "pixels", "channels": 3, "patch_size": 16}, "cannot be a target"),
        ({"kind": "pixels", "channels": None}, "give it channels"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Modality(**{**THERMAL.__dict__, **change})


def test_an_unknown_field_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'vocab_size'"):
        Modality.from_dict({**THERMAL.to_dict(), "vocabsize": 3})
