"""The answer of a search, best first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Id = str | int


@dataclass(frozen=True)
class Hit:
    """One row of an answer."""

    id: Id
    score: float
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """The rows that a search found, best first.

    Units:
        scores are cosines in -1..1 (what a reranker puts there keeps its own unit);
        ``p_right`` is the calibrated probability that the answer is right, if the index holds a
        calibration, ``p_means`` what that one calls right (``MEANINGS``), and
        ``good_match`` is False where the probability is too low
    """

    ids: list[Id]
    scores: npt.NDArray[np.float32]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    p_right: float | None = None
    good_match: bool | None = None
    p_means: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return self.take(range(*place.indices(len(self))))
        row = {name: values[place] for name, values in self.columns.items()}
        return Hit(self.ids[place], float(self.scores[place]), row)

    def __iter__(self) -> Iterator[Hit]:
        return (self[place] for place in range(len(self)))

    def take(self, places: Sequence[int]) -> Hits:
        """The hits at these places, in this order."""
        at = [int(p) for p in places]
        columns = {name: [values[p] for p in at] for name, values in self.columns.items()}
        ids = [self.ids[p] for p in at]
        return Hits(ids, self.scores[at], columns, self.p_right, self.good_match, self.p_means)

    @classmethod
    def joined(cls, parts: Sequence[Hits]) -> Hits:
        """Hits of several answers in one list; they have the same columns."""
        names = list(parts[0].columns) if parts else []
        columns = {name: [v for part in parts for v in part.columns[name]] for name in names}
        scores = np.concatenate([part.scores for part in parts]) if parts else np.empty(0)
        return cls([i for part in parts for i in part.ids], scores.astype(np.float32), columns)

    def to_rows(self) -> list[dict[str, Any]]:
        """The hits as plain dictionaries: rank, id, score and the columns."""
        return [
            {**hit.columns, "rank": rank, "id": hit.id, "score": round(hit.score, 6)}
            for rank, hit in enumerate(self, start=1)
        ]

    def to_json(self) -> dict[str, Any]:
        """For programs: the rows, and the confidence of the answer.

        JSON has no NaN: the score of a hit behind the rerank depth is null.
        """
        rows = [{name: _number(v) for name, v in row.items()} for row in self.to_rows()]
        sure = {"p_right": self.p_right, "p_means": self.p_means, "good_match": self.good_match}
        return {**sure, "hits": rows}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
