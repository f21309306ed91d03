"""What a tokenizer's recipe adds: cut photos, and a decoder for codes that are there."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.modalities.crops import CropPolicy
from fourm_lite.training.loop import TrainConfig
from fourm_lite.training.tokenizer_recipes import (
    TokenizerRecipe,
    Values,
    ValuesRecipe,
    _augmentation,
    _cropped,
    build_tokenizer,
    read_values,
    tokenizer_training,
)

SIZES = {
    "image_size": 8, "patch_size": 4, "n_channels": 3, "codebook_size": 16, "latent_dim": 8,
    "enc_type": "vit_16x1x2_enc", "dec_type": "vit_16x1x2_dec",
}  # fmt: skip


def recipe(tmp_path, **changes) -> TokenizerRecipe:
    base = TokenizerRecipe(
        tokenizer=SIZES,
        values=ValuesRecipe(form="photos", start_count=0),
        train=TrainConfig(steps=1, out=tmp_path / "run"),
    )
    return replace(base, **changes)


def photos() -> Values:
    g = torch.Generator().manual_seed(0)
    return Values(6, lambda i: torch.rand(3, 8, 8, generator=g) * 2 - 1)


def test_a_crop_keeps_size_and_range_and_follows_its_random_numbers():
    photo = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    cut = partial(_cropped, CropPolicy(scale=(0.3, 0.6)))

    first, again, other = (cut(photo, np.random.default_rng(s)) for s in (1, 1, 2))

    assert first.shape == photo.shape
    assert first.abs().max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_photos_of_any_size_are_cut_to_the_tokenizers(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((8, 8), (9, 20))]
    rows = []
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        row = {"id": str(number), "file": f"{number}.png", "captions": [], "split": "train"}
        rows.append(json.dumps(row) + "\n")
    (tmp_path / "list.jsonl").write_text("".join(rows))
    values = ValuesRecipe(form="photos", captions=tmp_path / "list.jsonl", start_count=0)

    _, stream = tokenizer_training(recipe(tmp_path, values=values, batch_size=2))

    assert stream.batch(0).shape == (2, 3, 8, 8)
    exact = torch.from_numpy(pictures[0]).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(read_values(values, 8)[0], exact)


def test_labels_are_not_cut_again():
    with pytest.raises(ConfigError, match="pseudolabel"):
        _augmentation(ValuesRecipe(form="edges", label="canny_edge", crop=(0.2, 1.0)))


def test_another_decoder_learns_the_codes_that_are_there(tmp_path):
    first = build_tokenizer(recipe(tmp_path), photos())
    first.save(tmp_path / "first")

    changed = recipe(
        tmp_path,
        tokenizer={**SIZES, "dec_type": "vit_16x2x2_dec", "freeze_enc": True},
        start=str(tmp_path / "first"),
    )
    second = build_tokenizer(changed, photos())

    x = photos().first(4)
    assert torch.equal(second.tokenize(x), first.eval().tokenize(x))


def test_codes_of_another_size_are_refused_with_the_way_out(tmp_path):
    build_tokenizer(recipe(tmp_path), photos()).save(tmp_path / "first")
    other = recipe(
        tmp_path, tokenizer={**SIZES, "codebook_size": 32}, start=str(tmp_path / "first")
    )

    with pytest.raises(CheckpointError, match="copy the sizes"):
        build_tokenizer(other, photos())
