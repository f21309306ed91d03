"""The part of a `sequences` case that tells what each modality is."""

from __future__ import annotations

from typing import Any

from fourm_lite.modalities.catalog import MODALITIES

KINDS = {"seq": {"sequence"}, "seq_emb": {"features"}, "feature_map": {"raw"},
         "img": {"pixels", "grid", "raw"}}  # fmt: skip
READ_NOWHERE = {"min_tokens", "pretokenized", "encoder_embedding", "shared_vocab"}


def check_ids(ids: dict[str, int]) -> None:
    assert {name: MODALITIES[name].legacy_id for name in ids} == ids


def check_table(table: dict[str, dict[str, Any]]) -> None:
    for name, facts in table.items():
        for key, value in facts.items():
            check_fact(name, key, value)


def check_fact(name: str, key: str, value: Any) -> None:
    entry = MODALITIES[name]
    if key in READ_NOWHERE or (key == "max_tokens" and value is None):
        return
    known = {
        "id": entry.legacy_id,
        "vocab_size": entry.vocab_size,
        "max_tokens": entry.max_tokens,
        "input_size": entry.image_size,
        "patch_size": entry.patch_size,
        "num_channels": entry.channels,
        "num_labels": entry.num_labels,
        "path": entry.path,
    }
    if key == "type":
        assert entry.kind in KINDS[value], f"{name}: {entry.kind} is not of type {value}"
    elif key == "decoder_embedding":
        assert value is None
        assert not entry.is_target, f"{name} has no decoder embedding"
    else:
        assert key in known, f"no check for the fact {key!r} of {name}"
        assert known[key] == value, f"{name}.{key}"
