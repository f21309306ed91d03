"""Zero-shot classification with a 4M model: photos against sentences made from labels.

Two ways. "embedding": the vectors that the model expects of a photo and of a sentence are compared,
both with the tokenizer's mean taken off. "likelihood": how probable the words are, given the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fourm_lite.embedders.zeroshot import (
    Classification,
    Labels,
    by_softmax,
    label_prompts,
    mean_by_label,
)
from fourm_lite.errors import ConfigError
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.search.base import PICTURE, TEXT
from fourm_lite.search.centre import unit
from fourm_lite.search.spaces import ModelSpace

# Neither is fitted. Centred cosines of right and wrong sentences differ by tenths, so 0.1 tells
# them apart without being sure; log-probabilities are nats already.
EMBEDDING_TEMPERATURE = 0.1
LIKELIHOOD_TEMPERATURE = 1.0


def classify_by_embedding(
    space: ModelSpace,
    pictures: Sequence[Any],
    labels: Labels,
    *,
    templates: Sequence[str] = ("{}",),
    temperature: float = EMBEDDING_TEMPERATURE,
) -> Classification:
    """A softmax of cosine / temperature; a label's vector is the unit mean over its sentences.

    Raises:
        ConfigError: no labels, two equal ones, a template without `{}`, a temperature of 0 or less
    """
    _check(temperature)
    prompts = label_prompts(labels, templates)
    sentences = [{TEXT: text} for group in prompts.values() for text in group]
    words = unit(mean_by_label(space.embed_items(sentences), prompts).astype(np.float32))
    photos, _ = space.embed_pictures(pictures)
    return by_softmax(tuple(prompts), photos.astype(np.float64) @ words.T / temperature)


def classify_by_likelihood(
    pipe: FourMPipeline,
    pictures: Sequence[Any],
    labels: Labels,
    *,
    templates: Sequence[str] = ("{}",),
    temperature: float = LIKELIHOOD_TEMPERATURE,
) -> Classification:
    """A softmax of (mean log p of a sentence's tokens, given the photo) / temperature.

    The log-probabilities of a label's sentences are averaged. Frequent words are probable on any
    photo: this way favours labels that captions often name.

    Raises:
        ConfigError: no labels, two equal ones, a template without `{}`, a temperature of 0 or less
    """
    _check(temperature)
    prompts = label_prompts(labels, templates)
    sentences = [text for group in prompts.values() for text in group]
    scores = pipe.score({TEXT: sentences}, [{PICTURE: picture} for picture in pictures])
    return by_softmax(tuple(prompts), mean_by_label(scores.T, prompts).T / temperature)


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(f"the temperature of a softmax is above 0, got {temperature}")
