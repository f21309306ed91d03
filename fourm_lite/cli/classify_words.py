"""`fourm-lite classify --labels`: classes in words, by a twin encoder or a 4M model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fourm_lite.embedders.images import as_rgb, open_image
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.zeroshot import Classification, ZeroShotClassifier, label_prompts
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.search.spaces import ModelSpace, is_embedder, open_space
from fourm_lite.search.zeroshot import (
    EMBEDDING_TEMPERATURE,
    LIKELIHOOD_TEMPERATURE,
    classify_by_embedding,
    classify_by_likelihood,
)

WAYS = ("embedding", "likelihood")
BATCH = 32
Judge = Callable[[list[Any]], Classification]


def by_words(
    model: str,
    photos: Sequence[str],
    labels: Sequence[str],
    top: int,
    *,
    templates: Sequence[str] | None,
    by: str | None,
    temperature: float | None,
    device: str | None,
    **options: str | None,
) -> list[dict[str, Any]]:
    """The labels of photos, most probable first, or why a photo cannot be read.

    Raises:
        ConfigError: fewer than two labels, two equal ones, a template without `{}`, or options that
            the model has no use for
        FourMError: the network reads no text
    """
    if len(set(labels)) < 2:
        raise ConfigError(
            f"--labels needs two or more different classes to tell apart, got {list(labels)}; "
            "add what else the photo could show"
        )
    forms = tuple(templates or ("{}",))
    label_prompts(labels, forms)  # before a large model is loaded
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"--temperature is above 0, got {temperature}")
    if is_embedder(model):
        given = [f"--{n.replace('_', '-')}" for n, v in {"by": by, **options}.items() if v]
        if given:
            raise ConfigError(f"{', '.join(given)}: for 4M models; '{model}' is a twin encoder")
        judge = _twin(model, labels, forms, temperature, device)
    else:
        judge = _model(model, labels, forms, temperature, by or WAYS[0], device, options)
    results: list[dict[str, Any]] = []
    for start in range(0, len(photos), BATCH):
        results += _judged(judge, photos[start : start + BATCH], top)
    return results


def _twin(
    model: str,
    labels: Sequence[str],
    templates: tuple[str, ...],
    temperature: float | None,
    device: str | None,
) -> Judge:
    embedder = load_embedder(model, **({"device": device} if device else {}))
    scale = None if temperature is None else 1 / temperature
    return ZeroShotClassifier(embedder, labels, templates=templates, scale=scale)


def _model(
    model: str,
    labels: Sequence[str],
    templates: tuple[str, ...],
    temperature: float | None,
    by: str,
    device: str | None,
    options: dict[str, str | None],
) -> Judge:
    if by not in WAYS:
        raise ConfigError(f"--by is one of {', '.join(WAYS)}, got '{by}'")
    space = open_space(model, device=device, **options)  # type: ignore[arg-type]
    assert isinstance(space, ModelSpace)
    if by == "likelihood":
        warmth = temperature or LIKELIHOOD_TEMPERATURE
        return lambda pictures: classify_by_likelihood(
            space.pipe, pictures, labels, templates=templates, temperature=warmth
        )
    warmth = temperature or EMBEDDING_TEMPERATURE
    return lambda pictures: classify_by_embedding(
        space, pictures, labels, templates=templates, temperature=warmth
    )


def _judged(judge: Judge, photos: Sequence[str], top: int) -> list[dict[str, Any]]:
    """Results in the form of a trained classifier's."""
    results: list[dict[str, Any]] = [{"photo": photo} for photo in photos]
    pictures = []
    for result in results:
        try:
            pictures.append(as_rgb(open_image(result["photo"])))
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
