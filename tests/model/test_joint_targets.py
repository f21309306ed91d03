"""All tokens of several targets at once: what asking for one more target changes."""

from __future__ import annotations

import pytest
import torch
from tiny_terramind import terramind

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.model.likelihood import joint_logits

BATCH = TokenBatch({"tok_lulc@224": Tokens.given(torch.arange(392).view(2, 196), length=196)})


def test_one_more_target_changes_the_others_only_where_attention_is_uniform():
    model = terramind(empty_rows="mean")
    names = ["tok_ndvi@224", "tok_lulc@224"]
    for number, name in enumerate(names):  # far enough apart that a mean is felt
        model.target(name).mod_emb.data.normal_(generator=torch.Generator().manual_seed(number))
    for parameter in model.decoder.parameters():
        parameter.data.mul_(5)
    with torch.inference_mode():
        found = {
            how: (joint_logits(model, BATCH, names[:1], attention=how)[names[0]],
                  joint_logits(model, BATCH, names, attention=how)[names[0]])
            for how in ("own", "uniform")
        }  # fmt: skip

    assert torch.allclose(*found["own"], atol=1e-5)
    assert not torch.allclose(*found["uniform"], atol=1e-5)
    assert found["own"][0].shape == (2, 196, 15360)


def test_what_cannot_be_asked_for_is_refused():
    model = terramind()
    with pytest.raises(FourMError, match="sequence"):
        joint_logits(model, BATCH, ["coords"])
    with pytest.raises(ConfigError, match="give targets"):
        joint_logits(model, BATCH, [])
    with pytest.raises(ConfigError, match="attention='own'"):
        joint_logits(model, BATCH, ["tok_ndvi@224"], attention="uniform")
