"""All tokens of several targets at once: what asking for one more target changes."""

from __future__ import annotations

import pytest
import torch
from tiny_terramind import terramind

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.model.joint_targets import joint_logits

BATCH = TokenBatch({"tok_lulc@224": Tokens.given(torch.arange(392).view(2, 196), length=196)})


def test_one_more_target_leaves_the_others_as_they_were():
    model = terramind()
    names = ["tok_ndvi@224", "tok_lulc@224"]
    with torch.inference_mode():
        found = [joint_logits(model, BATCH, asked)[names[0]] for asked in (names[:1], names)]

    assert torch.allclose(*found, atol=1e-5)
    assert found[0].shape == (2, 196, 15360)


def test_what_cannot_be_asked_for_is_refused():
    model = terramind()
    with pytest.raises(FourMError, match="sequence"):
        joint_logits(model, BATCH, ["coords"])
    with pytest.raises(ConfigError, match="give targets"):
        joint_logits(model, BATCH, [])
