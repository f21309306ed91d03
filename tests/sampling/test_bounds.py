"""Numbers of plans, networks and runs have an upper end: a slip of the finger ends at once."""

from __future__ import annotations

import time

import pytest

from fourm_lite import MODALITIES, Plan
from fourm_lite.data.pseudolabel import LabelRun
from fourm_lite.errors import ConfigError
from fourm_lite.finetune.finetune import FinetuneConfig
from fourm_lite.modalities.crops import CropPolicy
from fourm_lite.model.config import FourMConfig
from fourm_lite.sampling.schedule import token_counts
from fourm_lite.training.loop import TrainConfig


def planned(**values):
    target = {"modality": "tok_clip@224", **values}
    return Plan.from_dict({"targets": [target]}).steps(MODALITIES, ["rgb@224"])


def config(**values):
    entries = (MODALITIES["rgb@224"],)
    usual = {"encoder_depth": 1, "decoder_depth": 1, "dim": 32, "num_heads": 2}
    return FourMConfig(inputs=entries, outputs=(MODALITIES["tok_clip@224"],), **{**usual, **values})


@pytest.mark.parametrize("many", [49_000_000, 10**12, 10**30])
@pytest.mark.parametrize(
    "build",
    [
        lambda n: planned(steps=n, scheme="roar"), lambda n: planned(steps=n),
        lambda n: planned(copies=n), lambda n: planned(max_tokens=n),
        lambda n: token_counts(196, n),
        lambda n: token_counts(n, 8), lambda n: config(encoder_depth=n), lambda n: config(dim=n),
        lambda n: config(decoder_depth=n), lambda n: CropPolicy(size=n),
        lambda n: LabelRun(num_crops=n), lambda n: FinetuneConfig(epochs=n),
        lambda n: TrainConfig(out=".", workers=n),
    ],
)  # fmt: skip
def test_a_number_beyond_reason_is_refused_at_once(build, many):
    started = time.monotonic()

    with pytest.raises(ConfigError):
        build(many)

    assert time.monotonic() - started < 1


def test_the_largest_plan_is_quick():
    started = time.monotonic()

    assert len(planned(steps=10_000, scheme="roar")) <= 196

    assert time.monotonic() - started < 2
