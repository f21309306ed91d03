"""Zero-shot classification: photos against sentences made from labels, by any model.

A dual encoder compares its own vectors. A 4M model has two ways. "embedding": the vectors that it
expects of a photo and of a sentence are compared, both with the tokenizer's mean taken off.
"likelihood": how much more probable the photo makes the words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.zeroshot import (
    Classification,
    Labels,
    ZeroShotClassifier,
    by_softmax,
    label_prompts,
    mean_by_label,
)
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.finetune.pixels import readable
from fourm_lite.metrics.classification import best_temperature, classification_report, log_loss
from fourm_lite.modalities.pictures import decode
from fourm_lite.photos.labelled import LabelledSet, read_labelled
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.progress import StageProgress
from fourm_lite.search.space import PICTURE, TEXT
from fourm_lite.search.spaces import ModelSpace, is_embedder, open_model_space
from fourm_lite.unit import unit

# Fitted with `evaluate zeroshot`: on 100 photos of val `mini` has its least loss at 0.107
# (flowers5) and 0.099 (clothing10). Log-probabilities are nats already.
EMBEDDING_TEMPERATURE = 0.1
LIKELIHOOD_TEMPERATURE = 1.0
WAYS = ("embedding", "likelihood")
BATCH = 32


@dataclass(frozen=True)
class WordClassifier:
    """Tells classes in words apart.

    Units:
        judge: pictures -> their scores; temperature: what its logits were divided by
    """

    judge: Callable[[Sequence[Any]], Classification]
    temperature: float

    def __call__(self, pictures: Sequence[Any]) -> Classification:
        """The scores of pictures."""
        return self.judge(pictures)


def open_classifier(
    model: str,
    labels: Labels,
    *,
    templates: Sequence[str] = ("{}",),
    by: str | None = None,
    temperature: float | None = None,
    device: str | None = None,
    **options: str | None,
) -> WordClassifier:
    """What judges pictures by words: a dual encoder, or a 4M model in one of its ways.

    Args:
        model: a 4M model or an embedder's specification
        labels: a list, or a mapping from a label to the names that stand for it
        templates: sentences around `{}`; their vectors or log-probabilities are averaged
        by: "embedding" (None too) or "likelihood"; 4M models only
        temperature: of the softmax; None is the model's own scale or the constant of its way
        device: of the weights
        **options: of `open_space`; 4M models only

    Raises:
        ConfigError: a template without `{}`, or options that the model has no use for
        FourMError: the network reads no text
    """
    label_prompts(labels, templates)  # before a large model is loaded
    _check(temperature)
    if not is_embedder(model):
        return _model_classifier(
            model, labels, templates, by or WAYS[0], temperature, device, options
        )
    given = [f"--{n.replace('_', '-')}" for n, v in {"by": by, **options}.items() if v]
    if given:
        raise ConfigError(f"{', '.join(given)}: for 4M models; '{model}' is a dual encoder")
    embedder = load_embedder(model, **({"device": device} if device else {}))
    scale = None if temperature is None else 1 / temperature
    classifier = ZeroShotClassifier(embedder, labels, templates=templates, scale=scale)
    return WordClassifier(classifier, 1 / classifier.logit_scale.scale)


def _model_classifier(
    model: str,
    labels: Labels,
    templates: Sequence[str],
    by: str,
    temperature: float | None,
    device: str | None,
    options: dict[str, str | None],
) -> WordClassifier:
    if by not in WAYS:
        raise ConfigError(f"--by is one of {', '.join(WAYS)}, got '{by}'")
    space = open_model_space(model, device=device, **options)  # type: ignore[arg-type]
    if by == "likelihood":
        warmth = temperature or LIKELIHOOD_TEMPERATURE
        return WordClassifier(
            lambda pictures: classify_by_likelihood(
                space.pipe, pictures, labels, templates=templates, temperature=warmth
            ),
            warmth,
        )
    warmth = temperature or EMBEDDING_TEMPERATURE
    words = _label_vectors(space, labels, templates)
    return WordClassifier(
        lambda pictures: _by_cosine(space, pictures, labels, words, warmth), warmth
    )


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
    words = _label_vectors(space, labels, templates)
    return _by_cosine(space, pictures, labels, words, temperature)


def _label_vectors(space: ModelSpace, labels: Labels, templates: Sequence[str]) -> Any:
    prompts = label_prompts(labels, templates)
    sentences = [{TEXT: text} for group in prompts.values() for text in group]
    return unit(mean_by_label(space.encode_query(sentences), prompts).astype(np.float32))


def _by_cosine(
    space: ModelSpace, pictures: Sequence[Any], labels: Labels, words: Any, temperature: float
) -> Classification:
    photos, _ = space.encode_document(pictures)
    return by_softmax(tuple(labels), photos.astype(np.float64) @ words.T / temperature)


def classify_by_likelihood(
    pipe: FourMPipeline,
    pictures: Sequence[Any],
    labels: Labels,
    *,
    templates: Sequence[str] = ("{}",),
    temperature: float = LIKELIHOOD_TEMPERATURE,
) -> Classification:
    """A softmax of (what the photo adds to the mean log p of a sentence's tokens) / temperature.

    Frequent words are probable on any photo, so what they have on a grey picture is taken off. The
    scores of a label's sentences are averaged.

    Raises:
        ConfigError: no labels, two equal ones, a template without `{}`, a temperature of 0 or less
    Source:
        Calibrate Before Use (Zhao et al. 2021): a content-free input tells the bias
    """
    _check(temperature)
    prompts = label_prompts(labels, templates)
    sentences = [text for group in prompts.values() for text in group]
    items = [{PICTURE: picture} for picture in [np.full((64, 64, 3), 128, np.uint8), *pictures]]
    scores = pipe.score({TEXT: sentences}, items)
    scores = scores[1:] - scores[:1]
    return by_softmax(tuple(prompts), mean_by_label(scores.T, prompts).T / temperature)


def classify_by_words(
    model: str,
    photos: Sequence[str],
    labels: Sequence[str],
    top: int,
    *,
    templates: Sequence[str] | None,
    temperature: float | None,
    **options: Any,
) -> list[dict[str, Any]]:
    """The labels of photos, most probable first, or why a photo cannot be read.

    Raises:
        ConfigError: fewer than two labels, two equal ones, a template without `{}`, or options that
            the model has no use for
        FourMError: the network reads no text
    """
    judge = open_named_classifier(model, labels, templates, temperature, **options)
    results: list[dict[str, Any]] = []
    for start in range(0, len(photos), BATCH):
        results += _judged(judge, photos[start : start + BATCH], top)
    return results


def open_named_classifier(
    model: str,
    labels: Sequence[str],
    templates: Sequence[str] | None,
    temperature: float | None,
    **options: Any,
) -> WordClassifier:
    """What judges by the classes of a command line.

    Raises:
        ConfigError: fewer than two labels, two equal ones, or what `open_classifier` refuses
    """
    named = label_names(labels)
    if len(named) < 2 or len(named) < len(labels):
        raise ConfigError(
            f"--labels needs two or more different classes to tell apart, got {list(labels)}; "
            "add what else the photo could show"
        )
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"--temperature is above 0, got {temperature}")
    forms = tuple(templates or ("{}",))
    return open_classifier(model, named, templates=forms, temperature=temperature, **options)


def label_names(labels: Sequence[str]) -> dict[str, list[str]]:
    """Labels with the names that stand for them: "dog", or "dog=a dog|puppies"."""
    pairs = [(label, label.partition("=")) for label in labels]
    return {
        name.strip() if names else label: [n.strip() for n in (names or label).split("|")]
        for label, (name, _, names) in pairs
    }


def _judged(judge: WordClassifier, photos: Sequence[str], top: int) -> list[dict[str, Any]]:
    """Results in the form of a trained classifier's."""
    results: list[dict[str, Any]] = [{"photo": photo} for photo in photos]
    pictures = []
    for result in results:
        try:
            pictures.append(decode(result["photo"]))
        except FourMError as error:
            result["error"] = str(error)
    found = judge(pictures) if pictures else None
    read = [result for result in results if "error" not in result]
    for result, row in zip(read, found.top(top) if found else (), strict=True):
        result["label"] = row[0][0]
        assert found is not None
        result["top"] = [
            {"label": label, "index": found.labels.index(label), "probability": p}
            for label, p in row
        ]
    return results


def evaluate_zeroshot(
    judge: WordClassifier,
    photos: LabelledSet,
    *,
    draws: int = 1000,
    facts: dict[str, Any] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Accuracy with its interval, each class, and how good the probabilities are.

    Args:
        judge: over the classes of `photos`, in their order
        photos: from `labelled_photos`
        draws: of the bootstrap
        facts: more to write into the protocol
        progress: called with the stage, and what is done of how much

    Returns:
        `classification_report`, with ``"top_5"`` (how often the class is among the first five; None
        for five classes or less), ``"log_loss"`` (in nats), ``"temperature"`` and
        ``"best_temperature"``, the one that would make the right answers on these photos likeliest
    """
    parts = []
    for start in range(0, len(photos), BATCH):
        some = [photo.record.open_image() for photo in photos.photos[start : start + BATCH]]
        parts.append(judge(some).logits)
        if progress is not None:
            progress("photos", start + len(some), len(photos))
    logits, truth = np.concatenate(parts), photos.labels.numpy()
    protocol = {"what": "zero-shot", "skipped": [vars(s) for s in photos.skipped], **(facts or {})}
    return {
        **classification_report(
            logits.argmax(axis=1), truth, photos.classes, protocol=protocol, draws=draws
        ),
        "top_5": _top_5(logits, truth),
        "log_loss": log_loss(logits, truth),
        "temperature": judge.temperature,
        "best_temperature": judge.temperature * best_temperature(logits, truth),
    }


def _top_5(logits: Any, truth: Any) -> float | None:
    """Classes of equal score stand in the order of their numbers, as in `accuracy`."""
    if logits.shape[1] <= 5:
        return None
    first = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return float((first == truth[:, None]).any(axis=1).mean())


def labelled_photos(folder: str | Path, split: str, limit: int | None = None) -> LabelledSet:
    """The readable photos of a split; with a limit, so many, evenly over the list.

    Raises:
        ConfigError: photos of several labels
    """
    photos = read_labelled(folder, split=split)
    if photos.multi_label:
        raise ConfigError("zero-shot accuracy is for one label a photo")
    if limit is not None and limit < len(photos):
        photos = photos.rows(i * len(photos) // limit for i in range(limit))
    return readable(photos)


def _check(temperature: float | None) -> None:
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"the temperature of a softmax is above 0, got {temperature}")
