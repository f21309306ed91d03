"""The losses of a global embedding: the right embedding among those of the batch."""

from __future__ import annotations

import torch

from fourm_lite.model.fourm import Prediction
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.training.losses import (
    directions,
    embedding_contrast,
    embedding_regression,
    expected_directions,
)
from fourm_lite.training.tasks import ranks

LENGTH, VOCAB = 4, 8


def make_tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=1, n_channels=6, patch_proj=False, patch_size=1, codebook_size=VOCAB,
        num_codebooks=LENGTH, latent_dim=16, enc_type="BottleneckMLP/B_1-Wi_12",
        dec_type="BottleneckMLP/B_1-Wi_12", quant_type="memcodes",
        mean=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), scale=0.5,
    )  # fmt: skip
    return VQTokenizer(config).eval().requires_grad_(False)


def predicted(ids: torch.Tensor, sharpness: float) -> Prediction:
    logits = sharpness * torch.nn.functional.one_hot(ids.flatten(), VOCAB).float()
    return Prediction(logits.requires_grad_(), ids.flatten())


def contrast(prediction: Prediction, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    tokenizer = make_tokenizer()
    found = expected_directions(prediction, tokenizer, LENGTH)
    return embedding_contrast(found, tokenizer, ids, temperature=temperature)


def regression(prediction: Prediction, vectors: torch.Tensor) -> torch.Tensor:
    tokenizer = make_tokenizer()
    return embedding_regression(
        expected_directions(prediction, tokenizer, LENGTH), tokenizer, vectors
    )


def test_directions_are_unit_and_centred():
    tokenizer = make_tokenizer()
    ids = torch.randint(VOCAB, (5, LENGTH), generator=torch.Generator().manual_seed(1))

    found = directions(tokenizer, tokenizer.lookup(ids))

    plain = tokenizer.detokenize(ids) - tokenizer.input_mean
    assert torch.allclose(found.norm(dim=1), torch.ones(5))
    assert torch.allclose(found, torch.nn.functional.normalize(plain, dim=1), atol=1e-6)


def test_a_sure_and_right_prediction_has_less_loss_than_an_even_one():
    ids = torch.randint(VOCAB, (6, LENGTH), generator=torch.Generator().manual_seed(2))

    sure = contrast(predicted(ids, 50.0), ids, 0.02)
    even = contrast(predicted(ids, 0.0), ids, 0.02)

    # All rows are alike where nothing is known: no better than a guess among six.
    guess = torch.tensor(6.0).log()
    assert even >= guess - 1e-4
    assert sure < 0.5 * guess


def test_its_gradient_reaches_the_logits_alone():
    tokenizer = make_tokenizer()
    ids = torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    prediction = predicted(ids, 1.0)

    found = expected_directions(prediction, tokenizer, LENGTH)
    embedding_contrast(found, tokenizer, ids, temperature=0.1).backward()

    assert prediction.logits.grad is not None
    assert prediction.logits.grad.abs().sum() > 0
    assert all(p.grad is None for p in tokenizer.parameters())


def test_ranks_count_from_one_and_ties_do_not_push_back():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.4, 0.4, 0.1]])

    assert ranks(scores, torch.tensor([0, 2, 1])).tolist() == [1, 3, 1]


def test_the_regression_is_one_less_the_centred_cosine_to_the_real_vector():
    tokenizer = make_tokenizer()
    ids = torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(4))
    own = tokenizer.detokenize(ids)
    sure = predicted(ids, 200.0)

    there = regression(sure, own)
    opposite = regression(sure, 2 * tokenizer.input_mean - own)

    torch.testing.assert_close(there, torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(opposite, torch.tensor(2.0), atol=1e-4, rtol=0)
    regression(predicted(ids, 1.0), own).backward()
