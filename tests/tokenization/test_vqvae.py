"""The tokenizer as a whole: values to tokens and back, in all their forms."""

from __future__ import annotations

import pytest
import torch
from vq_configs import diffusion_config, global_config, image_config

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.modalities.spec import IMAGENET_MEAN, IMAGENET_STD
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.training.losses import reconstruction_loss


def make(config):
    return VQTokenizer(config).eval()


def images(generator, batch=2, channels=3, size=(16, 16)):
    return torch.rand(batch, channels, *size, generator=generator) * 2 - 1


CASES = {
    "image": (image_config(), lambda g: images(g)),
    "wide image": (image_config(), lambda g: images(g, size=(16, 24))),
    "euclidean": (image_config(norm_codes=False), lambda g: images(g)),
    "labels": (
        image_config(n_labels=7, n_channels=4),
        lambda g: torch.randint(7, (2, 16, 16), generator=g),
    ),
    "bytes of labels": (
        image_config(n_labels=7, n_channels=4),
        lambda g: torch.randint(7, (2, 16, 16), generator=g).byte(),
    ),
    "features": (
        image_config(patch_proj=False, n_channels=6),
        lambda g: torch.randn(2, 6, 3, 4, generator=g),
    ),
    "mask": (image_config(n_channels=1, out_conv=True), lambda g: images(g, channels=1).sign()),
    "vectors": (global_config(), lambda g: torch.randn(5, 12, generator=g)),
    "vector maps": (global_config(), lambda g: torch.randn(5, 12, 1, 1, generator=g)),
    "spatial memcodes": (global_config(), lambda g: torch.randn(2, 12, 2, 3, generator=g)),
    "one memcode": (global_config(num_codebooks=1), lambda g: torch.randn(2, 12, generator=g)),
    "two heads": (image_config(num_codebooks=2), lambda g: images(g)),
    "diffusion": (diffusion_config(), lambda g: images(g, channels=1, size=(32, 32))),
}


@pytest.fixture(params=CASES, ids=str)
def case(request, generator):
    config, values = CASES[request.param]
    return make(config), values(generator)


def decoded(tokenizer, tokens, **options):
    options = {"steps": 2, "generator": torch.Generator().manual_seed(3), **options}
    return tokenizer.detokenize(tokens, **options)


def test_tokens_are_ids_of_the_codebook(case):
    tokenizer, x = case

    tokens = tokenizer.tokenize(x)

    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < tokenizer.vocab_size
    assert torch.equal(tokens, tokenizer.tokenize(x))


def test_flat_tokens_and_token_maps_decode_to_the_same_values(case):
    tokenizer, x = case
    tokens = tokenizer.tokenize(x)
    grid = tokens.shape[-2:] if tokens.ndim > 2 else (1, 1)

    as_map = decoded(tokenizer, tokens)
    flat = decoded(tokenizer, tokenizer.tokenize_flat(x), grid=tuple(grid))

    assert tokenizer.tokenize_flat(x).shape == (len(x), tokens[0].numel())
    assert torch.allclose(flat.reshape(as_map.shape), as_map, atol=1e-5)


def test_decoded_values_have_the_form_of_the_input(case):
    tokenizer, x = case

    out = decoded(tokenizer, tokenizer.tokenize(x))

    labels = tokenizer.config.n_labels
    assert out.shape == ((x.shape[0], labels, *x.shape[1:]) if labels else x.shape)


def test_encoding_then_decoding_is_tokenizing_then_detokenizing(case):
    tokenizer, x = case
    options = {"steps": 2, "generator": torch.Generator().manual_seed(3)}

    direct = tokenizer.decode(tokenizer.encode(x).latents, **options)

    assert torch.allclose(
        direct.reshape(-1), decoded(tokenizer, tokenizer.tokenize(x)).reshape(-1), atol=1e-5
    )


def test_a_batch_gives_the_tokens_of_its_samples(case):
    tokenizer, x = case

    alone = torch.cat([tokenizer.tokenize(row) for row in x.split(1)])

    assert torch.equal(tokenizer.tokenize(x), alone)


def test_tokenizing_in_train_mode_gives_the_same_and_changes_nothing(case):
    tokenizer, x = case
    want = tokenizer.tokenize(x)
    before = {k: v.clone() for k, v in tokenizer.state_dict().items()}

    got = tokenizer.train().tokenize(x)

    assert torch.equal(got, want)
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.state_dict().items())


def test_tokens_made_on_the_fly_serve_as_training_targets(case):
    tokenizer, x = case
    ids = tokenizer.tokenize_flat(x)
    table = torch.nn.Embedding(tokenizer.vocab_size, tokenizer.vocab_size)

    torch.nn.functional.cross_entropy(table(ids).flatten(0, 1), ids.flatten()).backward()

    assert table.weight.grad is not None


def test_certain_probabilities_decode_like_their_tokens(case):
    tokenizer, x = case
    tokens = tokenizer.tokenize(x)
    grid = tuple(tokens.shape[-2:]) if tokens.ndim > 2 else (1, 1)
    flat = tokenizer.tokenize_flat(x)
    probs = torch.nn.functional.one_hot(flat, tokenizer.vocab_size).float()

    latents = tokenizer.expected_latents(probs, grid=grid)

    assert torch.allclose(latents, tokenizer.lookup(flat, grid=grid), atol=1e-6)


@pytest.mark.parametrize("name", ["image", "labels", "vectors", "diffusion", "two heads"])
def test_a_training_step_gives_gradients_to_every_part(generator, name):
    config, values = CASES[name]
    tokenizer = VQTokenizer(config).train()
    loss = reconstruction_loss("cross_entropy" if config.n_labels else "mse")

    step = tokenizer(values(generator), generator=generator)
    (loss(step.output, step.target) + step.quantized.loss).backward()

    silent = [n for n, p in tokenizer.named_parameters() if p.grad is None]
    assert not silent
    assert tokenizer.quant_proj.weight.grad.isfinite().all()


def test_training_makes_the_reconstruction_better(generator):
    config = global_config(
        quant_type="lucid", num_codebooks=1, ema_decay=0.8, codebook_size=32, latent_dim=8
    )
    tokenizer, x = VQTokenizer(config).train(), torch.randn(16, 12, generator=generator)
    optimizer, losses = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3), []
    for _ in range(60):
        step = tokenizer(x, generator=generator)
        loss = torch.nn.functional.mse_loss(step.output, step.target) + step.quantized.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < 0.5 * losses[0]


def test_a_frozen_encoder_neither_learns_nor_moves_the_codebook(generator):
    tokenizer = VQTokenizer(image_config(freeze_enc=True)).train()
    before = {k: v.clone() for k, v in tokenizer.quantize.state_dict().items()}

    step = tokenizer(images(generator))
    step.output.sum().backward()

    assert all(p.grad is None for p in tokenizer.encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.quantize.state_dict().items())


def test_centring_is_undone_by_decoding(generator):
    mean = [float(i) for i in range(12)]
    plain = make(global_config())
    centred = make(global_config(mean=tuple(mean), scale=0.5))
    centred.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(4, 12, generator=generator)
    shifted = x / 0.5 + torch.tensor(mean)

    assert torch.equal(centred.tokenize(shifted), plain.tokenize(x))
    want = plain.detokenize(plain.tokenize(x)) / 0.5 + torch.tensor(mean)
    assert torch.allclose(centred.detokenize(centred.tokenize(shifted)), want, atol=1e-5)
    assert not any("input_" in key for key in plain.state_dict())


def test_undo_std_takes_back_the_standardisation_of_imagenet(generator):
    plain, undoing = make(image_config()), make(image_config(undo_std=True))
    undoing.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 16, 16, generator=generator)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    assert torch.allclose(undoing.latents((x - mean) / std), plain.latents(2 * x - 1), atol=1e-4)


def test_a_half_precision_network_keeps_its_codebook(generator):
    tokenizer = make(image_config())
    x = images(generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = tokenizer.tokenize(x)
        image = tokenizer.detokenize(tokens)

    assert tokenizer.lookup(tokens).dtype == torch.float32
    assert image.shape == x.shape


BAD = {
    "channels": (image_config(), torch.zeros(1, 4, 16, 16), "float\\[B, 3, H, W\\]"),
    "whole numbers": (image_config(), torch.zeros(1, 3, 16, 16).byte(), "got uint8"),
    "rank": (image_config(), torch.zeros(3, 16, 16), "got float32\\[3, 16, 16\\]"),
    "size": (image_config(), torch.zeros(1, 3, 16, 17), "multiples of 8"),
    "real labels": (image_config(n_labels=7), torch.zeros(1, 16, 16), "label map"),
    "label": (image_config(n_labels=7), torch.full((1, 16, 16), 9), "labels lie in 0..6"),
    "width of vectors": (global_config(), torch.zeros(2, 11), "float\\[B, 12\\] vectors"),
}


@pytest.mark.parametrize("name", BAD)
def test_values_of_another_kind_are_refused_at_the_door(name):
    config, x, message = BAD[name]

    with pytest.raises(ShapeError, match=message):
        make(config).tokenize(x)


BAD_TOKENS = {
    "outside": (image_config(), torch.full((1, 2, 2), 24), "0..23"),
    "negative": (image_config(), torch.full((1, 2, 2), -1), "0..23"),
    "real": (image_config(), torch.zeros(1, 2, 2), "whole numbers"),
    "no square": (image_config(), torch.zeros(1, 6, dtype=torch.int64), "pass grid"),
    "heads": (global_config(), torch.zeros(1, 3, 1, 1, dtype=torch.int64), "\\[B, 4, Hq, Wq\\]"),
    "flat heads": (global_config(), torch.zeros(1, 6, dtype=torch.int64), "4 codebook"),
    "none": (global_config(), torch.zeros(1, 0, dtype=torch.int64), "do not fill"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_tokens_of_another_kind_are_refused_at_the_door(name):
    config, tokens, message = BAD_TOKENS[name]

    with pytest.raises(ShapeError, match=message):
        make(config).detokenize(tokens)


def test_flat_tokens_take_the_grid_that_is_given(generator):
    tokenizer = make(image_config())
    tokens = torch.randint(24, (1, 6), generator=generator)

    assert tokenizer.detokenize(tokens, grid=(2, 3)).shape == (1, 3, 16, 24)
    assert tokenizer.detokenize(tokens, grid=(3, 2)).shape == (1, 3, 24, 16)
    with pytest.raises(ShapeError, match="the grid \\(2, 2\\)"):
        tokenizer.detokenize(tokens, grid=(2, 2))


def test_probabilities_over_another_codebook_are_refused():
    with pytest.raises(ShapeError, match="B, L, 24"):
        make(image_config()).expected_latents(torch.zeros(1, 4, 23))


@pytest.mark.parametrize(
    ("kind", "message"), [("VQ", "encoder only"), ("VQControlNet", "Stable Diffusion")]
)
def test_a_tokenizer_without_decoder_tokenizes_and_says_why_it_cannot_decode(
    generator, kind, message
):
    tokenizer = make(image_config(kind=kind, dec_type=None))
    tokens = tokenizer.tokenize(images(generator))

    assert tokens.shape == (2, 2, 2)
    with pytest.raises(ConfigError, match=message):
        tokenizer.detokenize(tokens)


def test_an_unknown_decoding_option_is_refused_with_the_nearest_one():
    tokenizer = make(image_config())

    with pytest.raises(ConfigError, match="Did you mean 'guidance'"):
        tokenizer.detokenize(torch.zeros(1, 2, 2, dtype=torch.int64), guidence=2.0)
