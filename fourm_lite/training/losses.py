"""All losses: of the masked model, of a global embedding, of tokenizers, of joint encoders.

Unusual: the tokens of a global embedding are all asked for at once. With a few thousand photos a
code is seen a handful of times, so a one-hot target teaches little. Codes have a geometry, though:
a near code is nearly right. And retrieval asks for the right photo among others, which is a loss
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fourm_lite.errors import ConfigError, check_choice
from fourm_lite.model.fourm import Prediction
from fourm_lite.tokenization.vq.memcodes import Memcodes
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

# The masked model: a mean over modalities, or over tokens -----------------------------------

LossKind = Literal["mod", "token"]
Weighting = Literal["tokens", "logits"]


def pretraining_loss(
    predictions: Mapping[str, Prediction],
    kind: LossKind = "mod",
    *,
    count_absent: bool = False,
    weigh_by: Weighting = "tokens",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of a batch, and of each modality.

    "mod" is the mean of the modalities' means, "token" the mean over all tokens. The original
    counts modalities without targets in the first (`count_absent=True`) and weighs the second by
    tokens times vocabulary (`weigh_by="logits"`); see docs/differences.md.

    Shapes:
        returns: float[] and a float[] for each modality; 0 for one without targets
    """
    losses: dict[str, Tensor] = {}
    weights: list[float] = []
    for name, p in predictions.items():
        n = p.ids.shape[0]
        losses[name] = F.cross_entropy(p.logits.float(), p.ids) if n else p.logits.float().sum()
        weights.append(_weight(kind, p, n, count_absent, weigh_by))
    total = sum(weights)
    if not losses or total == 0:
        return torch.stack(list(losses.values())).sum(), losses
    stacked = torch.stack(list(losses.values()))
    factors = stacked.new_tensor(weights)
    return (stacked * factors).sum() / total, losses


def _weight(kind: str, p: Prediction, n: int, count_absent: bool, weigh_by: str) -> float:
    if kind == "mod":
        return 1.0 if n or count_absent else 0.0
    if kind == "token":
        return float(p.logits.numel() if weigh_by == "logits" else n)
    raise ConfigError(f"loss kind must be 'mod' or 'token', got {kind!r}")


# The tokens of a global embedding ------------------------------------------------------------


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
    return info_nce(scores)


def info_nce(scores: Tensor) -> Tensor:
    """Each row finds its own column, each column its own row: float[B, B] -> float[]."""
    own = torch.arange(len(scores), device=scores.device)
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
    return info_nce(found @ wanted.T / temperature)


# Tokenizers, by the names of 4M's recipes: a mean over everything that is compared -------------

Loss = Callable[[Tensor, Tensor], Tensor]


def cosine(output: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of each channel's map: float[B, C, H, W] both."""
    return (1 - F.cosine_similarity(output.flatten(2), target.flatten(2), dim=-1)).mean()


def cosine_1d(output: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of the channels at each place: float[B, C, ...] both."""
    return (1 - F.cosine_similarity(output, target, dim=1)).mean()


def binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a mask's two classes: float[B, 1, H, W] logits and target in {0, 1}.

    A quirk of the original is kept: the probabilities p and 1 - p are taken as *logits*, so that
    the loss lies in 0.31..1.31 and pulls less on what is nearly right.
    """
    p = output.sigmoid()
    scores, wanted = torch.cat([p, 1 - p], dim=1), torch.cat([target, 1 - target], dim=1)
    return F.cross_entropy(scores, wanted.to(scores.dtype))


LOSSES: dict[str, Loss] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "cross_entropy": F.cross_entropy,  # float[B, labels, H, W] against int64[B, H, W]
    "cosine": cosine,
    "cosine_1d": cosine_1d,
    "binary_cross_entropy": binary_cross_entropy,
}


def reconstruction_loss(name: str) -> Loss:
    """The loss of a name.

    Raises:
        ConfigError: there is none
    """
    check_choice("a tokenizer's loss", name, of=LOSSES)
    return LOSSES[name]


# Joint encoders, as MMT-Retrieval trains them. Distances are 1 - cosine; `texts` and `images` are
# pooled states, float[B, E], by position ---------------------------------------------------------

SAME = 2.0
"""Added to the distance of pairs that are no negatives: more than any distance is apart."""


def hardest_triplet_loss(
    texts: Tensor, images: Tensor, picture_ids: Tensor, margin: float = 0.2
) -> Tensor:
    """The mean over pairs of both hinges against the nearest wrong one in the batch.

    Rows that share a picture (`picture_ids` int64[B]) are no negatives of each other.
    """
    distances = 1 - _cosines(texts, images)
    same = picture_ids[:, None] == picture_ids[None]
    far = distances + SAME * same
    paired = distances.diagonal()
    captions, pictures = far.min(dim=0).values, far.min(dim=1).values
    return (F.relu(paired - captions + margin) + F.relu(paired - pictures + margin)).mean()


def contrastive_loss(texts: Tensor, images: Tensor, scale: float = 20.0) -> Tensor:
    """Cross-entropy of each picture over the captions of the batch (NT-Xent)."""
    logits = scale * _cosines(images, texts)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of pairs, int64[B] with 1 for a match; one logit is read as its own sigmoid."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def sampled_triplet_loss(
    texts: Tensor, images: Tensor, positives: Tensor, negatives: Tensor, margin: float = 0.1
) -> Tensor:
    """The mean of both hinges over given negatives of both sides.

    Shapes:
        positives: int64[P], rows that belong together in `texts` and `images`
        negatives: int64[P, k], wrong rows of each, for both sides
    """
    distances = 1 - _cosines(texts, images)
    paired = distances[positives, positives][:, None]
    pictures = distances[positives[:, None], negatives]
    captions = distances[negatives, positives[:, None]]
    return (F.relu(paired - pictures + margin) + F.relu(paired - captions + margin)).mean()


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
