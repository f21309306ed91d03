"""The published family names a tokenizer for every modality of the published models."""

from __future__ import annotations

import pytest

from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.published import FAMILIES, FOURM, family_of

TOKENS = [m for m in MODALITIES.values() if m.kind in ("grid", "sequence")]
FEATURES = ("tok_clip@224", "tok_dinov2@224", "tok_dinov2_global", "tok_imagebind@224",
            "tok_imagebind_global", "tok_clip@448")  # fmt: skip


@pytest.mark.parametrize("entry", TOKENS, ids=lambda m: m.name)
def test_every_modality_of_the_table_has_what_its_values_need(entry):
    if entry.kind == "sequence":
        assert FOURM.reads_text(entry)
        return

    found = FOURM.tokenizer(entry)

    assert found is not None
    assert found.codes == entry.vocab_size


@pytest.mark.parametrize("name", FEATURES)
def test_every_modality_of_features_names_its_network(name):
    entry = MODALITIES[name]

    network = FOURM.network(entry)

    assert network is not None
    assert network.width == MODALITIES[entry.raw].channels


def test_masks_and_poses_inside_a_text_have_tokenizers_too():
    assert FOURM.tokenizer(MODALITIES["sam_instance"]) is FOURM.tokenizers["sam_instance"]
    assert FOURM.tokenizer(MODALITIES["human_poses"]) is FOURM.tokenizers["human_poses"]
    assert FOURM.tokenizer(MODALITIES["caption"]) is None


def test_another_vocabulary_is_not_the_familys():
    from dataclasses import replace

    depth = replace(MODALITIES["tok_depth@224"], vocab_size=256)

    assert FOURM.tokenizer(depth) is None
    assert FOURM.network(replace(MODALITIES["tok_clip@224"], vocab_size=256)) is None


def test_a_config_tells_its_family():
    assert family_of({"domains_in": ["caption"]}) is FOURM
    assert family_of({"format": 1, "kind": "fourm"}) is None
    assert family_of({"format": 1, "extra": {"family": "4m"}}) is FAMILIES["4m"]
    assert family_of({"format": 1, "extra": {"family": ["4m"]}}) is None
    assert family_of({"enc_type": "vit_b_enc"}) is None
