"""Zero-shot classification with a dual encoder: photos against sentences made from labels.

The probabilities are a softmax of `scale * cosine + bias` with the network's own scale. A label may
have several names and each name goes through several templates; their unit vectors are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fourm_lite.embedders.base import LogitScale, NetworkEmbedder, Vectors, unit_length
from fourm_lite.errors import ConfigError, FourMError

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
        self.labels = _label_names(labels)
        self.activation = activation
        if activation not in ("softmax", "sigmoid"):
            raise ConfigError(f"activation is softmax or sigmoid, got '{activation}'")
        # Before the scale: a network that reads no text has none either, and should say the former
        self.vectors = label_vectors(embedder, labels, templates=templates)
        self.logit_scale = _scale(embedder, scale)

    def __call__(self, images: Any, batch_size: int = 32) -> Classification:
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
        if self.activation == "sigmoid":
            probabilities = np.exp(-np.logaddexp(0.0, -logits))
        else:
            return by_softmax(self.labels, logits)
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


def label_vectors(
    embedder: NetworkEmbedder, labels: Labels, *, templates: Sequence[str] = ("{}",)
) -> Vectors:
    """One unit vector a label: the mean over its names and templates, of unit vectors.

    Shapes:
        returns: float32[C, E]
    """
    prompts = label_prompts(labels, templates)
    vectors = embedder.embed_text([prompt for group in prompts.values() for prompt in group])
    return unit_length(mean_by_label(vectors, prompts).astype(np.float32))


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


def mean_by_label(rows: Any, prompts: Mapping[str, Sequence[str]]) -> Any:
    """Rows [P, ...] of all sentences in order as their means float64[C, ...], one a label."""
    splits = np.cumsum([len(group) for group in prompts.values()])[:-1]
    return np.stack([p.mean(axis=0) for p in np.split(np.asarray(rows, np.float64), splits)])


def by_softmax(labels: Sequence[str], logits: Any) -> Classification:
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


def _label_names(labels: Labels) -> tuple[str, ...]:
    return tuple(_names(labels))


def _scale(embedder: NetworkEmbedder, given: float | None) -> LogitScale:
    if given is not None:
        return LogitScale(float(given))
    if embedder.logit_scale is None:
        raise FourMError(
            f"'{embedder.name}' has no scale of its own for a softmax over labels; "
            f"pass scale=100.0 (CLIP's) or so, `--temperature 0.01` on the command line"
        )
    return embedder.logit_scale
