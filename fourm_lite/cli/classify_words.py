"""`fourm-lite classify --labels`: classes in words, by a twin encoder or a 4M model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.evaluate.zero_shot import BATCH, Judge, open_judge
from fourm_lite.modalities.pictures import decode


def by_words(
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
    judge = judge_of(model, labels, templates, temperature, **options)
    results: list[dict[str, Any]] = []
    for start in range(0, len(photos), BATCH):
        results += _judged(judge, photos[start : start + BATCH], top)
    return results


def judge_of(
    model: str,
    labels: Sequence[str],
    templates: Sequence[str] | None,
    temperature: float | None,
    **options: Any,
) -> Judge:
    """What judges by the classes of a command line.

    Raises:
        ConfigError: fewer than two labels, two equal ones, or what `open_judge` refuses
    """
    named = names_of(labels)
    if len(named) < 2 or len(named) < len(labels):
        raise ConfigError(
            f"--labels needs two or more different classes to tell apart, got {list(labels)}; "
            "add what else the photo could show"
        )
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"--temperature is above 0, got {temperature}")
    forms = tuple(templates or ("{}",))
    return open_judge(model, named, templates=forms, temperature=temperature, **options)


def names_of(labels: Sequence[str]) -> dict[str, list[str]]:
    """Labels with the names that stand for them: "dog", or "dog=a dog|puppies"."""
    pairs = [(label, label.partition("=")) for label in labels]
    return {
        name.strip() if names else label: [n.strip() for n in (names or label).split("|")]
        for label, (name, _, names) in pairs
    }


def _judged(judge: Judge, photos: Sequence[str], top: int) -> list[dict[str, Any]]:
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
