"""Further losses for the tokens of a global embedding, all of which are asked for at once.

With a few thousand photos a code is seen a handful of times, so a one-hot target teaches little.
Codes have a geometry, though: a near code is nearly right. And retrieval asks for the right photo
among others, which is a loss of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ConfigError
from fourm_lite.model.fourm import Prediction
from fourm_lite.tokenization.vq.memcodes import Memcodes
from fourm_lite.tokenization.vq.vqvae import VQTokenizer


@torch.no_grad()
def soft_targets(tokenizer: VQTokenizer, temperature: float) -> Tensor:
    """For each head and true code, how right each code is: a softmax of minus squared distances.

    Shapes:
        returns: float[heads, V, V], rows sum to 1
    Units:
        temperature: in mean squared distances between the codes of a head
    Raises:
        ConfigError: the tokenizer has no memcodes, or the temperature is not positive
    """
    if not isinstance(tokenizer.quantize, Memcodes) or temperature <= 0:
        raise ConfigError("soft targets need a tokenizer with memcodes and a temperature above 0")
    values = tokenizer.quantize.tables()[1].float()
    distance = torch.cdist(values, values).square()
    scale = distance.mean(dim=(1, 2), keepdim=True)
    return (-distance / (temperature * scale)).softmax(dim=-1)


def whole_rows(prediction: Prediction, batch: int, length: int) -> bool:
    """Whether every row of the batch asks for all `length` tokens."""
    return batch > 0 and prediction.ids.shape[0] == batch * length


def soft_cross_entropy(prediction: Prediction, targets: Tensor) -> Tensor:
    """Cross-entropy against soft targets.

    Shapes:
        prediction: all tokens of every row; targets: float[L, V, V]
    """
    length = targets.shape[0]
    position = torch.arange(prediction.ids.shape[0], device=targets.device) % length
    wanted = targets[position, prediction.ids]
    return -(wanted * prediction.logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def likelihood_contrast(prediction: Prediction, length: int, *, temperature: float) -> Tensor:
    """Picks each row's own tokens among those of all rows, by their likelihood.

    The score of row b for the tokens of row j is the sum of their log-probabilities, divided by the
    temperature: what reranking by likelihood uses, trained as InfoNCE.

    Source:
        Representation Learning with Contrastive Predictive Coding (van den Oord et al. 2018)
    """
    logp = rearrange(prediction.logits.float().log_softmax(-1), "(b l) v -> b l v", l=length)
    ids = rearrange(prediction.ids, "(b l) -> b l", l=length)
    places = torch.arange(length, device=ids.device)
    scores = logp[:, places, ids].sum(dim=-1) / temperature  # [b, j] by advanced indexing
    own = torch.arange(len(ids), device=ids.device)
    # Both ways: the photo for a caption, and the caption for a photo.
    return 0.5 * (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own))


def directions(tokenizer: VQTokenizer, latents: Tensor) -> Tensor:
    """Decoded embeddings as cosines compare them: less the tokenizer's mean, of unit length.

    Shapes:
        latents: float[B, latent_dim, Hq, Wq] -> float[B, E]
    """
    vectors = tokenizer.decode(latents).float().flatten(1)
    return F.normalize(_centered(tokenizer, vectors), dim=1)


def expected_directions(prediction: Prediction, tokenizer: VQTokenizer, length: int) -> Tensor:
    """The expected embedding of each row as `directions`: what a search by one pass uses.

    Shapes:
        prediction: all `length` tokens of every row
        returns: float[B, E]
    """
    probs = rearrange(prediction.logits.float().softmax(-1), "(b l) v -> b l v", l=length)
    with torch.autocast(probs.device.type, enabled=False):
        return directions(tokenizer, tokenizer.expected_latents(probs))


def embedding_regression(found: Tensor, tokenizer: VQTokenizer, vectors: Tensor) -> Tensor:
    """One less the cosine of the expected embedding and the teacher's own vector.

    Among a few dozen pictures the contrast is soon won and teaches nothing more; this goes on to
    pull the embedding to its place. The vector is the real one, not what its tokens keep of it.

    Shapes:
        found: float[B, E], `expected_directions`; vectors: float[B, E]
    """
    wanted = F.normalize(_centered(tokenizer, vectors.float()), dim=1)
    return (1 - (found * wanted).sum(dim=1)).mean()


def _centered(tokenizer: VQTokenizer, vectors: Tensor) -> Tensor:
    return vectors if tokenizer.config.mean is None else vectors - tokenizer.input_mean.float()


def embedding_contrast(
    found: Tensor, tokenizer: VQTokenizer, ids: Tensor, *, temperature: float
) -> Tensor:
    """Picks each row's own embedding among those of all rows, by the cosine to the expected one.

    This trains the search itself: InfoNCE between the expected embeddings and those that the rows'
    own tokens decode to, both ways.

    Shapes:
        found: float[B, E], `expected_directions`; ids: int64[B, L]
    """
    with torch.no_grad(), torch.autocast(found.device.type, enabled=False):
        wanted = directions(tokenizer, tokenizer.lookup(ids))
    scores = found @ wanted.T / temperature
    own = torch.arange(len(ids), device=ids.device)
    return 0.5 * (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own))
