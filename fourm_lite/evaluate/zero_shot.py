"""Zero-shot classification: photos against sentences made from labels, by any model.

A label may have several names and each name goes through several templates; their unit vectors are
averaged. A dual encoder compares its own vectors: the probabilities are a softmax of
`scale * cosine + bias` with the network's own scale. A 4M model has two ways. "embedding": the
vectors that it expects of a photo and of a sentence are compared, both with the tokenizer's mean
taken off. "likelihood": how much more probable the photo makes the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fourm_lite.embedders.base import LogitScale, NetworkEmbedder, Towers, Vectors, unit_length
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError, FourMError, check_choice
from fourm_lite.modalities.pictures import decode
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.progress import Progress, batches
from fourm_lite.search.space import PICTURE, TEXT
from fourm_lite.search.spaces import ModelSpace, is_embedder, open_model_space

# What CLIP's authors found to help on photographs, shortened
PHOTO_TEMPLATES = (
    "a photo of {}.",
    "a bad photo of {}.",
    "a close-up photo of {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
    "itap of {}.",
    "art of {}.",
)
Labels = Sequence[str] | Mapping[str, Sequence[str]]
Activation = Literal["softmax", "sigmoid"]
# Fitted with `evaluate zeroshot`: on 100 photos of val `mini` has its least loss at 0.107
# (flowers5) and 0.099 (clothing10). Log-probabilities are nats already.
EMBEDDING_TEMPERATURE = 0.1
LIKELIHOOD_TEMPERATURE = 1.0
WAYS = ("embedding", "likelihood")
BATCH = 32


@dataclass(frozen=True)
class Classification:
    """Scores of photos against labels.

    Shapes:
        logits, probabilities: float32[N, C], columns in the order of `labels`
    """

    labels: tuple[str, ...]
    logits: Vectors
    probabilities: Vectors

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most probable labels of each photo with their probability, best first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.labels[c], float(row[c])) for c in columns]
            for row, columns in zip(self.probabilities, order, strict=True)
        ]


class ZeroShotClassifier:
    """A dual encoder with the vectors of its labels computed once."""

    def __init__(
        self,
        embedder: NetworkEmbedder,
        labels: Labels,
        *,
        templates: Sequence[str] = ("{}",),
        scale: float | None = None,
        activation: Activation = "softmax",
    ) -> None:
        self.embedder = embedder
        self.labels = tuple(_names(labels))
        self.activation = activation
        if activation not in ("softmax", "sigmoid"):
            raise ConfigError(f"activation is softmax or sigmoid, got '{activation}'")
        # Before the scale: a network that reads no text has none either, and should say the former
        self.vectors = label_vectors(embedder, labels, templates=templates)
        self.logit_scale = _scale(embedder, scale)

    @property
    def temperature(self) -> float:
        """What cosines are divided by before the softmax."""
        return 1 / self.logit_scale.scale

    def __call__(self, images: Any, batch_size: int = BATCH) -> Classification:
        """The photos' scores."""
        return self.from_vectors(self.embedder.embed_image(images, batch_size))

    def from_vectors(self, images: Vectors) -> Classification:
        """The scores of photos that are embedded already, float32[N, E] of unit length."""
        if images.ndim != 2 or images.shape[1] != self.vectors.shape[1]:
            raise ConfigError(
                f"'{self.embedder.name}' has labels of width {self.vectors.shape[1]}, got vectors "
                f"of shape {list(images.shape)}; embed the photos with the same network"
            )
        cosines = images.astype(np.float64) @ self.vectors.astype(np.float64).T
        logits = cosines * self.logit_scale.scale + self.logit_scale.bias
        if self.activation == "softmax":
            return _by_softmax(self.labels, logits)
        probabilities = np.exp(-np.logaddexp(0.0, -logits))
        return Classification(
            self.labels, logits.astype(np.float32), probabilities.astype(np.float32)
        )


def classify(
    embedder: NetworkEmbedder,
    images: Any,
    labels: Labels,
    *,
    templates: Sequence[str] = ("{}",),
    scale: float | None = None,
    activation: Activation = "softmax",
    batch_size: int = 32,
) -> Classification:
    """Photos against labels, in one call.

    `labels` is a list, or a mapping from a label to the names that stand for it. `scale` replaces
    the network's own. "sigmoid" gives each label its own probability, as SigLIP was trained.

    Raises:
        FourMError: the network reads no text, or has no scale and none is given
        ConfigError: no labels, two equal ones, or a template without `{}`
    """
    classifier = ZeroShotClassifier(
        embedder, labels, templates=templates, scale=scale, activation=activation
    )
    return classifier(images, batch_size)


class LikelihoodClassifier:
    """A 4M model's: a softmax of what the photo adds to the mean log p of a sentence's tokens.

    Frequent words are probable on any photo, so what they have on a grey picture is taken off. The
    scores of a label's sentences are averaged.

    Source:
        Calibrate Before Use (Zhao et al. 2021): a content-free input tells the bias
    """

    def __init__(
        self,
        pipe: FourMPipeline,
        labels: Labels,
        *,
        templates: Sequence[str] = ("{}",),
        temperature: float = LIKELIHOOD_TEMPERATURE,
    ) -> None:
        self.pipe, self.temperature = pipe, temperature
        self.prompts = label_prompts(labels, templates)

    def __call__(self, pictures: Sequence[Any]) -> Classification:
        """The scores of pictures."""
        sentences = [text for group in self.prompts.values() for text in group]
        grey = np.full((64, 64, 3), 128, np.uint8)
        scores = self.pipe.score({TEXT: sentences}, [{PICTURE: p} for p in [grey, *pictures]])
        scores = scores[1:] - scores[:1]
        means = _mean_by_label(scores.T, self.prompts).T
        return _by_softmax(tuple(self.prompts), means / self.temperature)


WordClassifier = ZeroShotClassifier | LikelihoodClassifier
"""Classifies by words; its logits are divided by its `temperature` already."""


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
        ConfigError: a template without `{}`, a temperature of 0 or less, or options that the model
            has no use for
        FourMError: the network reads no text
    """
    label_prompts(labels, templates)  # before a large model is loaded
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"the temperature of a softmax is above 0, got {temperature}")
    scale = None if temperature is None else 1 / temperature
    if is_embedder(model):
        given = [f"--{n.replace('_', '-')}" for n, v in {"by": by, **options}.items() if v]
        if given:
            raise ConfigError(f"{', '.join(given)}: for 4M models; '{model}' is a dual encoder")
        embedder = load_embedder(model, **({"device": device} if device else {}))
        return ZeroShotClassifier(embedder, labels, templates=templates, scale=scale)
    if by is not None:
        check_choice("--by", by, of=WAYS)
    space = open_model_space(model, device=device, **options)  # type: ignore[arg-type]
    if by == "likelihood":
        warmth = temperature or LIKELIHOOD_TEMPERATURE
        return LikelihoodClassifier(space.pipe, labels, templates=templates, temperature=warmth)
    return ZeroShotClassifier(as_dual_encoder(space), labels, templates=templates, scale=scale)


def as_dual_encoder(space: ModelSpace) -> NetworkEmbedder:
    """A 4M model as an embedder of what it expects of a photo and of a sentence."""
    return NetworkEmbedder(
        space.name,
        Towers(
            image=lambda pictures: space.encode_document(pictures)[0],
            text=lambda texts: space.encode_query([{TEXT: text} for text in texts]),
        ),
        identity=lambda: space.name,
        logit_scale=LogitScale(1 / EMBEDDING_TEMPERATURE),
    )


def classify_by_words(
    model: str,
    photos: Sequence[str],
    labels: Sequence[str],
    top: int,
    *,
    templates: Sequence[str] | None,
    temperature: float | None,
    progress: Progress | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """The labels of photos, most probable first, or why a photo cannot be read.

    `progress` is told how many photos are done.

    Raises:
        ConfigError: fewer than two labels, two equal ones, a template without `{}`, or options that
            the model has no use for
        FourMError: the network reads no text
    """
    judge = open_named_classifier(model, labels, templates, temperature, **options)
    results: list[dict[str, Any]] = []
    for some in batches(photos, BATCH, progress):
        results += _judged(judge, some, top)
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
        parts = [part.strip() for part in labels[0].split(",")] if len(labels) == 1 else []
        each = " ".join(f"--labels {part!r}" for part in parts if part)
        advice = (
            f"write one --labels for each class: {each}"
            if len(parts) > 1
            else "add what else the photo could show, with one --labels for each class"
        )
        raise ConfigError(
            "--labels needs two or more different classes to tell apart, got "
            f"{list(labels)}; {advice}"
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


def label_vectors(
    embedder: NetworkEmbedder, labels: Labels, *, templates: Sequence[str] = ("{}",)
) -> Vectors:
    """One unit vector a label: the mean over its names and templates, of unit vectors.

    Shapes:
        returns: float32[C, E]
    """
    prompts = label_prompts(labels, templates)
    vectors = embedder.embed_text([prompt for group in prompts.values() for prompt in group])
    return unit_length(_mean_by_label(vectors, prompts).astype(np.float32))


def label_prompts(labels: Labels, templates: Sequence[str] = ("{}",)) -> dict[str, list[str]]:
    """The sentences of each label: all its names in all templates.

    Raises:
        ConfigError: no labels, two equal ones, or a template without `{}`
    """
    without = [t for t in templates if "{}" not in t]
    if without or not templates:
        raise ConfigError(f"a template holds '{{}}' for the label, got {without or 'no template'}")
    return {
        label: [t.replace("{}", name) for name in names for t in templates]
        for label, names in _names(labels).items()
    }


def _mean_by_label(rows: Any, prompts: Mapping[str, Sequence[str]]) -> Any:
    """Rows [P, ...] of all sentences in order as their means float64[C, ...], one a label."""
    splits = np.cumsum([len(group) for group in prompts.values()])[:-1]
    return np.stack([p.mean(axis=0) for p in np.split(np.asarray(rows, np.float64), splits)])


def _by_softmax(labels: Sequence[str], logits: Any) -> Classification:
    """Logits [N, C] with their softmax."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    return Classification(
        tuple(labels), logits.astype(np.float32), probabilities.astype(np.float32)
    )


def _names(labels: Labels) -> dict[str, Sequence[str]]:
    if isinstance(labels, str):
        raise ConfigError(f"labels are a list of names, got the string {labels!r}")
    pairs = labels.items() if isinstance(labels, Mapping) else [(n, [n]) for n in labels]
    found: dict[str, Sequence[str]] = {
        label: [names] if isinstance(names, str) else list(names) for label, names in pairs
    }
    empty = [label for label, names in found.items() if not names]
    if not found or empty or len(found) < len(labels):
        raise ConfigError(
            f"labels must be different and have a name each, got {list(labels)}"
            + (f" where {empty} have none" if empty else "")
        )
    return found


def _scale(embedder: NetworkEmbedder, given: float | None) -> LogitScale:
    if given is not None:
        return LogitScale(float(given))
    if embedder.logit_scale is None:
        raise FourMError(
            f"'{embedder.name}' has no scale of its own for a softmax over labels; "
            f"pass scale=100.0 (CLIP's) or so, `--temperature 0.01` on the command line"
        )
    return embedder.logit_scale
