"""What stands at a tokenizer's door."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fourm_lite import load_tokenizer
from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

MLP = {"enc_type": "BottleneckMLP/B_1-Wi_16", "dec_type": "BottleneckMLP/B_1-Wi_16"}


@pytest.fixture(scope="module", params=["memcodes", "lucid"])
def tokenizer(request):
    config = TokenizerConfig(
        codebook_size=24, n_channels=10, patch_proj=False, patch_size=1, image_size=1,
        quant_type=request.param, num_codebooks=4 if request.param == "memcodes" else 1,
        latent_dim=16, **MLP,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQTokenizer(config).eval()


def test_arrays_are_taken_as_tensors_are(tokenizer):
    values = np.random.default_rng(0).standard_normal((3, 10))
    want = tokenizer.tokenize(torch.from_numpy(values))

    for form in (values, values.astype(">f8"), values[::-1].copy()[::-1]):
        assert torch.equal(tokenizer.tokenize(form), want)
    for kind in (np.int64, np.int16, np.uint16, np.uint8, ">i4"):
        assert torch.equal(
            tokenizer.detokenize(want.numpy().astype(kind)), tokenizer.detokenize(want)
        )


@pytest.mark.parametrize("bad", [[[0.0] * 10], "text", None, np.array([["a"] * 10])])
def test_what_is_no_array_of_numbers_is_refused(tokenizer, bad):
    with pytest.raises(ShapeError, match="expected"):
        tokenizer.tokenize(bad)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_has_no_token(tokenizer, bad):
    values = torch.zeros(2, 10)
    values[1, 4] = bad

    for form in (values, values.numpy(), values.double()):
        with pytest.raises(ShapeError, match="1 of 20 that are NaN or infinite"):
            tokenizer.tokenize(form)
        with pytest.raises(ShapeError, match="NaN or infinite"):
            tokenizer.tokenize_flat(form)


@pytest.mark.parametrize("bad", [24, 5000, -1])
def test_ids_outside_the_codebook_are_refused_at_every_door(tokenizer, bad):
    tokens = torch.zeros(1, tokenizer.config.num_codebooks, dtype=torch.int64)
    tokens[0, -1] = bad
    grid = tokens[..., None, None] if tokens.shape[1] > 1 else tokens[..., None]

    for call in (
        lambda: tokenizer.detokenize(tokens),
        lambda: tokenizer.lookup(tokens),
        lambda: tokenizer.quantize.lookup(grid),
    ):
        with pytest.raises(ShapeError, match=r"0\.\.23"):
            call()


def test_a_missing_device_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")

    with pytest.raises(ConfigError, match="nonsense"):
        load_tokenizer(tmp_path / "saved", device="nonsense")
