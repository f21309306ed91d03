"""A tiny model with convolutions beside its encoder."""

from __future__ import annotations

from dataclasses import replace

from tiny import CAPTION, GLOBAL, tiny_model

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.modalities.spec import IN, Modality

PIXELS = Modality(
    name="rgb@64", kind="pixels", channels=3, image_size=64, patch_size=16, grid=(4, 4),
    max_tokens=16, directions=IN, convolutions=True,
)  # fmt: skip
BESIDE = "encoder_embeddings.rgb@64.conv"


def made(convolutions: bool = True):
    entry = replace(PIXELS, convolutions=convolutions)
    model = tiny_model(inputs=(entry, CAPTION), outputs=(GLOBAL, CAPTION), image_size=64)
    if convolutions:
        model.encoder_embeddings["rgb@64"].init_weights()
    return model


def given(pixels, inputs=None):
    tokens = Tokens.given(pixels, length=16)
    return TokenBatch({"rgb@64": tokens if inputs is None else replace(tokens, inputs=inputs)})
