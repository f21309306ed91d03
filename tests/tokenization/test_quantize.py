"""Codebooks: what is nearest, how they learn, and that tokenizing leaves them alone."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fourm_lite.errors import ShapeError
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.memcodes import Memcodes
from fourm_lite.tokenization.vq.quantize import VectorQuantizer


def config(**changes) -> TokenizerConfig:
    values = {"codebook_size": 12, "latent_dim": 8, "threshold_ema_dead_code": 0.0}
    return TokenizerConfig(**{**values, **changes})


def latents(generator, batch=3, dim=8, grid=(2, 3)):
    return torch.randn(batch, dim, *grid, generator=generator)


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("norm_codes", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(1, 40))
def test_a_code_looked_up_and_quantized_again_is_the_same_code(norm_codes, heads, seed, size):
    torch.manual_seed(seed)
    settings_ = config(
        norm_codes=norm_codes, codebook_size=size, num_codebooks=heads, codebook_dim=8 // heads
    )
    quantizer = VectorQuantizer(settings_).eval()
    shape = (2, 3, 2) if heads == 1 else (2, heads, 3, 2)
    tokens = torch.randint(size, shape)

    again = quantizer(quantizer.lookup(tokens))

    assert torch.equal(again.tokens, tokens)
    assert torch.equal(again.latents, quantizer.lookup(tokens))


@pytest.mark.parametrize("norm_codes", [True, False])
def test_the_returned_vectors_are_raw_rows_of_the_codebook(generator, norm_codes):
    quantizer = VectorQuantizer(config(norm_codes=norm_codes)).eval()
    quantizer._codebook.embed.mul_(3.0)

    out = quantizer(latents(generator))

    rows = quantizer._codebook.embed[out.tokens]
    assert torch.equal(out.latents, rows.movedim(-1, 1))


def test_nearest_agrees_with_distances_written_out(generator):
    x = latents(generator)
    rows = x.movedim(1, -1).reshape(-1, 8)
    cosine = VectorQuantizer(config()).eval()
    euclid = VectorQuantizer(config(norm_codes=False)).eval()

    by_angle = F.cosine_similarity(rows[:, None], cosine._codebook.embed[None], dim=-1).argmax(1)
    by_distance = torch.cdist(rows, euclid._codebook.embed).argmin(1)

    assert torch.equal(cosine(x).tokens.flatten(), by_angle)
    assert torch.equal(euclid(x).tokens.flatten(), by_distance)


def test_scores_in_pieces_give_the_same_codes(generator, monkeypatch):
    quantizer = VectorQuantizer(config()).eval()
    x = latents(generator)
    whole = quantizer(x).tokens

    monkeypatch.setattr("fourm_lite.tokenization.vq.quantize.CHUNK", 24)

    assert torch.equal(quantizer(x).tokens, whole)


@pytest.mark.parametrize("make", [VectorQuantizer, Memcodes])
def test_quantizing_in_train_mode_changes_nothing_and_draws_nothing(generator, make):
    quantizer = make(config(threshold_ema_dead_code=5.0, kmeans_init=False)).train()
    x, before, random = latents(generator), state_of(quantizer), torch.get_rng_state()

    first, second = quantizer(x), quantizer(x)

    assert unchanged(quantizer, before)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(torch.get_rng_state(), random)
    assert first.loss == 0


@pytest.mark.parametrize("norm_codes", [True, False])
def test_training_pulls_codes_toward_the_latents(generator, norm_codes):
    quantizer = VectorQuantizer(config(norm_codes=norm_codes, ema_decay=0.5)).train()
    x = F.normalize(latents(generator, batch=8), dim=1)
    losses = [float(quantizer(x, update=True, generator=generator).loss) for _ in range(12)]

    assert losses[-1] < 0.6 * losses[0]


def test_gradients_pass_straight_through(generator):
    quantizer = VectorQuantizer(config(commitment_weight=0.0)).train()
    x = latents(generator).requires_grad_()

    out = quantizer(x, update=True)
    weights = torch.randn(out.latents.shape, generator=generator)
    (out.latents * weights).sum().backward()

    assert torch.equal(x.grad, weights)


@pytest.mark.parametrize("policy", ["batch_random", "linde_buzo_gray"])
@pytest.mark.parametrize("norm_codes", [True, False])
def test_dead_codes_are_replaced_by_unit_vectors_that_stay(generator, policy, norm_codes):
    quantizer = VectorQuantizer(
        config(
            norm_codes=norm_codes,
            threshold_ema_dead_code=0.5,
            code_replacement_policy=policy,
            ema_decay=0.9,
        )
    ).train()
    book, x = quantizer._codebook, latents(generator, batch=1, grid=(2, 2))
    dead = next(code for code in range(12) if code not in quantizer(x).tokens)
    book.cluster_size.fill_(10.0)
    book.cluster_size[dead] = 0.0
    before = book.embed.clone()

    quantizer(x, update=True, generator=generator)

    assert not torch.equal(book.embed[dead], before[dead])
    assert torch.allclose(book.embed[dead].norm(), torch.tensor(1.0), atol=1e-5)
    assert book.cluster_size.min() >= 0.5 - 1e-6
    if not norm_codes:  # the average agrees, or the next step would undo the replacement
        assert torch.allclose(book.embed_avg[dead], book.embed[dead] * book.cluster_size[dead])


def test_replacement_is_decided_by_the_generator(generator):
    settings_ = config(threshold_ema_dead_code=2.0)
    original = VectorQuantizer(settings_).train()
    x, books = latents(generator), []
    for seed in (1, 1, 2):
        quantizer = copy.deepcopy(original)
        quantizer(x, update=True, generator=torch.Generator().manual_seed(seed))
        books.append(quantizer._codebook.embed)

    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])


@pytest.mark.parametrize("norm_codes", [True, False])
def test_kmeans_starts_the_codebook_on_the_clusters_of_the_first_batch(generator, norm_codes):
    quantizer = VectorQuantizer(
        config(kmeans_init=True, norm_codes=norm_codes, codebook_size=8, ema_decay=0.99)
    ).train()
    centres = F.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    x = centres.repeat(6, 1)[:, :, None, None] + 0.01 * latents(generator, 18, grid=(1, 1))
    assert quantizer._codebook.initted == 0

    out = quantizer(x, update=True, generator=generator)

    assert quantizer._codebook.initted == 1
    assert (out.latents - x).norm(dim=1).max() < 0.1


def test_an_empty_batch_in_training_is_refused():
    quantizer = VectorQuantizer(config(kmeans_init=True)).train()

    with pytest.raises(ShapeError, match="empty batch"):
        quantizer(torch.zeros(0, 8, 1, 1), update=True)


def test_normalised_latents_ignore_the_scale_of_the_input(generator):
    quantizer = VectorQuantizer(config(norm_latents=True, norm_codes=False)).eval()
    x = latents(generator)

    assert torch.equal(quantizer(x).tokens, quantizer(7.0 * x).tokens)


def test_expected_latents_of_certain_codes_are_the_codes(generator):
    for quantizer, heads in (
        (VectorQuantizer(config()).eval(), 1),
        (Memcodes(config(num_codebooks=4)).eval(), 4),
        (VectorQuantizer(config(num_codebooks=2)).eval(), 2),
    ):
        tokens = torch.randint(12, (2, heads, 3, 2), generator=generator)
        shaped = tokens[:, 0] if heads == 1 else tokens

        mean = quantizer.expected(F.one_hot(tokens.flatten(2), 12).float())

        assert torch.allclose(mean, quantizer.lookup(shaped).flatten(2), atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_memcodes_decode_what_they_return_on_maps(generator, heads):
    quantizer = Memcodes(config(num_codebooks=heads)).eval()

    out = quantizer(latents(generator))

    expected = (3, 2, 3) if heads == 1 else (3, heads, 2, 3)
    assert tuple(out.tokens.shape) == expected
    assert torch.equal(quantizer.lookup(out.tokens), out.latents)


def test_memcodes_treat_each_place_and_head_by_itself(generator):
    quantizer = Memcodes(config(num_codebooks=2)).eval()
    x = latents(generator)

    whole = quantizer(x)
    alone = quantizer(x[1:2, :, 1:2, 2:3])

    assert torch.equal(whole.tokens[1, :, 1, 2], alone.tokens[0, :, 0, 0])


def test_memcodes_tables_follow_the_weights(generator):
    quantizer = Memcodes(config(num_codebooks=2)).eval().requires_grad_(False)
    x = latents(generator)
    before = quantizer(x)
    kept = quantizer.tables()[0]
    assert quantizer.tables()[0] is kept

    quantizer.to_k.weight.neg_()
    after = quantizer(x)

    keys = torch.einsum("hkd,hdc->hkc", quantizer.codes, quantizer.to_k.weight)
    assert torch.equal(quantizer.tables()[0], keys)
    assert not torch.equal(before.tokens, after.tokens)


def test_memcodes_tables_follow_loading_moving_and_copying(generator):
    quantizer = Memcodes(config(num_codebooks=2)).eval().requires_grad_(False)
    other = Memcodes(config(num_codebooks=2)).eval().requires_grad_(False)
    x = latents(generator)
    with torch.inference_mode():
        quantizer(x)
        want = other(x).tokens

    quantizer.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(quantizer(x).tokens, want)
    assert quantizer.double()(x).latents.dtype == x.dtype
    assert copy.deepcopy(quantizer)._kept is None


def test_memcodes_in_eval_give_gradients_when_they_are_wanted(generator):
    quantizer = Memcodes(config(num_codebooks=2)).eval()
    with torch.inference_mode():
        quantizer(latents(generator))

    quantizer(latents(generator)).latents.sum().backward()

    assert quantizer.to_v.weight.grad.abs().sum() > 0


def test_memcodes_learn_through_random_choices(generator):
    quantizer = Memcodes(config(num_codebooks=2)).train()
    x = latents(generator).requires_grad_()

    out = quantizer(x, update=True, generator=generator)
    out.latents.square().sum().backward()

    assert torch.allclose(quantizer.lookup(out.tokens), out.latents, atol=1e-6)
    assert x.grad.abs().sum() > 0
    assert quantizer.to_k.weight.grad.abs().sum() > 0
    draws = {tuple(quantizer(x, update=True).tokens.flatten().tolist()) for _ in range(5)}
    assert len(draws) > 1


def test_memcodes_spend_only_the_product_of_queries_and_keys(generator):
    heads, size, dim = 4, 64, 32
    quantizer = Memcodes(config(num_codebooks=heads, codebook_size=size, latent_dim=dim)).eval()
    x = latents(generator, batch=1, dim=dim, grid=(1, 1))
    with torch.no_grad():
        tokens = quantizer(x).tokens

        with FlopCounterMode(display=False) as encoding:
            quantizer(x)
        with FlopCounterMode(display=False) as decoding:
            quantizer.lookup(tokens)

    assert encoding.get_total_flops() == 2 * size * dim
    assert decoding.get_total_flops() == 0


WORKER = """
import sys, torch, torch.distributed as dist
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.quantize import VectorQuantizer

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
for norm_codes in (True, False):
    for policy in ("batch_random", "linde_buzo_gray"):
        torch.manual_seed(0)
        book = VectorQuantizer(TokenizerConfig(
            codebook_size=12, latent_dim=8, norm_codes=norm_codes, kmeans_init=norm_codes,
            threshold_ema_dead_code=0.6, code_replacement_policy=policy, ema_decay=0.5)).train()
        data = torch.Generator().manual_seed(100 + rank)   # other data on each process
        draws = torch.Generator().manual_seed(rank)        # and other random numbers
        for _ in range(4):
            book(torch.randn(3 + rank, 8, 2, 2, generator=data), update=True, generator=draws)
        for name, value in book.state_dict().items():
            both = [torch.empty_like(value) for _ in range(2)]
            dist.all_gather(both, value)
            assert torch.equal(*both), (norm_codes, policy, name)
dist.destroy_process_group()
"""


def test_two_processes_keep_the_same_codebook(tmp_path):
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]

    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
