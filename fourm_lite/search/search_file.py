"""What a reranker weighs, and what was fitted for searches with a model, kept as `search.json`.

How the first hits are reranked, and how sure an answer is: both from photos with captions that the
model was not trained on (`fourm-lite calibrate`). They belong to one embedding of the model, and to
its weights: a copy that is trained further needs new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from fourm_lite.errors import CheckpointError, ConfigError, FourMError, check_choice
from fourm_lite.io.files import write_json
from fourm_lite.io.strict_json import read_json_object

Weights = Mapping[str, float]
Given = Literal["codes", "pixels", "both"]
GIVEN: tuple[Given, ...] = ("codes", "pixels", "both")
"""The inputs that a candidate's captions are predicted from."""
PARTS = ("cosine", "codes", "caption", "prior")
DIRECTIONS = ("text_to_image", "image_to_text")


class UnseenError(ConfigError):
    """A reranker cannot look at some hits; `uris` are theirs."""

    def __init__(self, message: str, uris: Sequence[str]) -> None:
        super().__init__(message)
        self.uris = frozenset(uris)


def check_given(given: Any) -> Given:
    """Refuses what is none of `GIVEN`."""
    check_choice("what words are said from", given, of=GIVEN)
    return cast(Given, given)


def check_weights(weights: Any) -> Weights:
    """Refuses unknown parts and weights that are no numbers."""
    if not isinstance(weights, Mapping):
        raise ConfigError(f"weights are numbers by part ({', '.join(PARTS)}), got {weights!r:.80}")
    for name, value in weights.items():
        check_choice("a part that is weighed", name, of=PARTS)
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise ConfigError(f"the weight of {name!r} is a finite number, got {value!r}")
    return weights


FILE = "search.json"
FORMAT = 1


@dataclass(frozen=True)
class FittedSearch:
    """What was fitted for one embedding of a model.

    Args:
        target: the embedding
        fitted_on: the photos, in words
        weights: of the reranker, by what captions are said from and by direction
        given: what captions are said from unless it is said
        calibration: of the confidence (`search.calibration.probability`), as plain values
    """

    target: str
    fitted_on: str = ""
    weights: Mapping[Given, Mapping[str, Weights]] = field(default_factory=dict)
    given: Given = "codes"
    calibration: Mapping[str, Any] | None = None

    def weights_of(self, direction: str, given: Given) -> Weights | None:
        """The weights of a direction; those of words to photos stand in for the other."""
        found = self.weights.get(given, {})
        return found.get(direction, found.get(DIRECTIONS[0]))

    def save(self, folder: Path) -> Path:
        """Writes it beside a model and returns the file."""
        told: dict[str, Any] = {"format": FORMAT, "target": self.target}
        told |= {"fitted_on": self.fitted_on, "given": self.given, "rerank": self.weights}
        return write_json(Path(folder) / FILE, {**told, "calibration": self.calibration})


def read_fitted(folder: Path | None, target: str, config: Any = None) -> FittedSearch | None:
    """What is kept beside a model for an embedding; None where nothing is.

    Args:
        folder: of the model
        target: the embedding
        config: the entry `rerank` of the model's config, which is read where there is no file

    Raises:
        CheckpointError: the file is damaged
    """
    path = None if folder is None else Path(folder) / FILE
    if path is None or not path.is_file():
        return _of_config(config, target)
    try:
        found = _of_file(read_json_object(path))
    except (FourMError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; make it again (fourm-lite calibrate) or remove it"
        ) from error
    return found if found.target == target else None


def _of_file(told: Mapping[str, Any]) -> FittedSearch:
    if told["format"] != FORMAT:
        raise CheckpointError(f"expected format {FORMAT}, got {told['format']!r}")
    weights = {check_given(name): _by_direction(told["rerank"][name]) for name in told["rerank"]}
    calibration = told["calibration"]
    if not isinstance(calibration, Mapping | None):
        raise CheckpointError(f"expected a calibration of named values, got {calibration!r:.80}")
    return FittedSearch(
        str(told["target"]), str(told["fitted_on"]), weights, check_given(told["given"]),
        calibration,
    )  # fmt: skip


def _by_direction(told: Any) -> dict[str, Weights]:
    if not isinstance(told, Mapping):
        raise CheckpointError(f"expected weights by direction, got {told!r:.80}")
    return {name: check_weights(told[name]) for name in DIRECTIONS if name in told}


def _of_config(config: Any, target: str) -> FittedSearch | None:
    if not isinstance(config, Mapping):
        return None
    given = check_given(config.get("given", "codes"))
    weights = _by_direction(config)
    return FittedSearch(target, "what the model's config tells", {given: weights}, given)
