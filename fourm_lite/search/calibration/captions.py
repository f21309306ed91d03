"""Learns whether an answer shows what was asked for, from photos with captions.

Three kinds of questions. *Fitting*: captions of photos that are in the gallery, and beginnings of
them, since people ask in fewer words; their answer is right if the photo or one whose captions
match (`CaptionRelevance`) is among the first hits. *Foreign*: things that few galleries have
(`foreign.txt`, or the user's own), less those that the captions of this one have. *Lacking*:
captions again, answered without the photos that match. The last two have no right answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError
from fourm_lite.metrics.measures import evenly
from fourm_lite.search.calibration.answer_features import (
    CODES,
    FIRST,
    LIKELIHOOD,
    CaptionRelevance,
    Question,
    Table,
    Vocabulary,
    answer_features,
    names_for,
)
from fourm_lite.search.calibration.probability import (
    RELEVANCE,
    Calibration,
    CalibrationReport,
    auroc,
    calibration_error,
    fit,
)
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.index.index import Index
from fourm_lite.search.space import Space

MATCH, APART = 0.25, 0.15
"""A photo whose captions hold so much of the words is relevant; one with at most so much is not."""
SHARE = {"fitting": 0.85, "foreign": 0.11, "lacking": 0.04}
"""How much each kind counts: most people ask for what they think is there."""
DEEP, MOST, LONGEST = 200, 1000, 5
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RelevanceReport(CalibrationReport):
    """How well right and wrong answers are separated, on the half that a trial fit has not seen.

    Units:
        shares of questions: `share_right` of fitting ones whose answer is relevant, `flagged_x` of
        those of a kind that are called no good match (None where there were none); `auroc` of all
        answers together; `error` is the mean gap between told and true shares, each kind counting
        as in `SHARE`
    """

    flagged_fitting: float | None
    flagged_foreign: float | None
    flagged_lacking: float | None


@dataclass(frozen=True)
class Captioned:
    """Captions of photos that are rows of an index.

    Args:
        questions: the captions
        owner: for each the row of its photo
        judge: knows the captions of all rows that have some
        vocabulary: what counts as known
    """

    questions: Sequence[Question]
    owner: Sequence[Any]
    judge: CaptionRelevance
    vocabulary: Vocabulary

    def some(self, most: int) -> Captioned:
        """At most so many of the questions, drawn evenly."""
        places = evenly(len(self.questions), most).tolist()
        return Captioned(
            [self.questions[i] for i in places], [self.owner[i] for i in places],
            self.judge, self.vocabulary,
        )  # fmt: skip

    def are_right(self, hits: Sequence[Hits]) -> list[bool]:
        """Whether each answer is relevant: the photo or one that matches is among the first."""
        return [
            _is_relevant(question, owner, one.take(range(min(FIRST, len(one)))), self.judge)
            for question, owner, one in zip(self.questions, self.owner, hits, strict=True)
        ]

    def share(self, hits: Sequence[Hits]) -> float:
        """The share of relevant answers."""
        return float(np.mean(self.are_right(hits)))


@dataclass(frozen=True)
class Lessons:
    """Answers with what is known about them.

    Shapes:
        features: float64[Q] by name
        right, half: bool[Q]; the half that a trial fit sees
        kind: which of `SHARE`, Q times
        score: float64[Q] of the first hits
    """

    features: Table
    right: Bools
    half: Bools
    kind: npt.NDArray[Any]
    score: npt.NDArray[np.float64] = field(repr=False)

    def fit(self, rows: Bools, threshold: float = 0.5) -> Calibration:
        """A calibration of some of them."""
        return fit(
            {name: values[rows] for name, values in self.features.items()}, self.right[rows],
            threshold=threshold, counts=self.counts(rows), meaning=RELEVANCE,
        )  # fmt: skip

    def counts(self, rows: Bools) -> npt.NDArray[np.float64]:
        """How much each of some answers counts."""
        kinds, counts = np.unique(self.kind[rows], return_counts=True)
        each = {kind: SHARE[kind] / count for kind, count in zip(kinds, counts, strict=True)}
        return np.array([each[kind] for kind in self.kind[rows]])

    def report(self, threshold: float) -> RelevanceReport:
        """How a fit on one half does on the other."""
        seen, unseen = self.half, ~self.half
        p = self.fit(seen).p_right({name: v[unseen] for name, v in self.features.items()})
        right, kind = self.right[unseen], self.kind[unseen]
        flagged = {name: float((p < threshold)[kind == name].mean()) for name in set(kind)}
        return RelevanceReport(
            len(self.right), int(unseen.sum()), float(right[kind == "fitting"].mean()),
            auroc(p, right), auroc(self.score[unseen], right),
            calibration_error(p, right, counts=self.counts(unseen)),
            *(flagged.get(name) for name in SHARE),
        )  # fmt: skip


def lessons_of(
    index: Index, space: Space, captioned: Captioned, foreign: Sequence[str]
) -> tuple[Lessons, Table]:
    """Answers of an index to all three kinds of questions, and the features of the foreign ones.

    Raises:
        ConfigError: no question is left of a kind that is needed
    """
    some = captioned.some(MOST)
    starts = [beginning(q.text, number) for number, q in enumerate(some.questions)]
    short = questions_of(starts, space, [q.own for q in some.questions])
    fitting, owner = [*some.questions, *short], [*some.owner, *some.owner]
    both = replace(some, questions=fitting, owner=owner)
    strange = questions_of([t for t in foreign if not _is_there(t, captioned.judge)], space)
    if not strange:
        raise ConfigError("the captions have all that was given as foreign; give other texts")
    names = names_for(space, has_codes="codes" in index.columns)
    found = _search(index, space, fitting, DEEP)
    first = [one.take(range(min(FIRST, len(one)))) for one in found]
    others = _search(index, space, strange, FIRST)
    lacking = [_apart(q, one, captioned.judge) for q, one in zip(fitting, found, strict=True)]
    kept = [i for i, one in enumerate(lacking) if len(one) >= min(FIRST, len(index) // 2)]
    right = both.are_right(first)
    questions = [*fitting, *strange, *(fitting[i] for i in kept)]
    hits = _with_codes(index, [*first, *others, *(lacking[i] for i in kept)])
    features = answer_features(space, names, questions, hits, captioned.vocabulary)
    rows = {row: number for number, row in enumerate(dict.fromkeys(owner))}
    halves = [rows[row] % 2 == 0 for row in owner]
    half = [*halves, *(i % 2 == 0 for i in range(len(strange))), *(halves[i] for i in kept)]
    sizes = (len(fitting), len(strange), len(kept))
    place = slice(len(fitting), len(fitting) + len(strange))
    return Lessons(
        features, np.array([*right, *[False] * (sizes[1] + sizes[2])]), np.array(half),
        np.repeat(list(SHARE), sizes), np.array([float(one.scores[0]) for one in hits]),
    ), {name: values[place] for name, values in features.items()}  # fmt: skip


def questions_of(
    texts: Sequence[str], space: Space, own: Sequence[frozenset[str]] = ()
) -> list[Question]:
    """Questions of texts, whether the model can read them or not."""
    items, _ = space.query_texts(texts)
    words = own or [frozenset()] * len(texts)
    return [Question(*row) for row in zip(texts, items, words, strict=True)]


def beginning(text: str, number: int) -> str:
    """The first two to five words of a caption, as people ask; `number` chooses how many."""
    words = re.findall(r"[\w'-]+", text.lower())[: 2 + number % (LONGEST - 1)]
    while len(words) > 1 and len(words[-1]) <= 2:  # "a man in"
        words.pop()
    return " ".join(words) or text


def foreign_texts() -> list[str]:
    """Things that few galleries have, in few words and in sentences."""
    return files(__package__).joinpath("foreign.txt").read_text(encoding="utf-8").splitlines()


def _is_there(text: str, judge: CaptionRelevance) -> bool:
    """Whether a photo's captions hold most of a text."""
    matches = (judge.match(text, photo) or 0.0 for photo in judge.captions)
    return any(match > 0.5 for match in matches)


def _is_relevant(question: Question, owner: Any, hits: Hits, judge: CaptionRelevance) -> bool:
    matches = (judge.match(question.text, row) or 0.0 for row in hits.ids)
    return owner in hits.ids or any(match >= MATCH for match in matches)


def _apart(question: Question, hits: Hits, judge: CaptionRelevance) -> Hits:
    """The first hits that surely do not match; what has no captions might."""
    matches = ((at, judge.match(question.text, row)) for at, row in enumerate(hits.ids))
    apart = [at for at, match in matches if match is not None and match <= APART]
    return hits.take(apart[:FIRST])


def answers_to(index: Index, space: Space, questions: Sequence[Question]) -> list[Hits]:
    """The first hits of some questions, with what their features reads."""
    return _with_codes(index, _search(index, space, questions, FIRST))


def _search(index: Index, space: Space, questions: Sequence[Question], depth: int) -> list[Hits]:
    return index.search_many(space.encode_query([q.item for q in questions]), depth, columns=[])


def _with_codes(index: Index, hits: Sequence[Hits]) -> list[Hits]:
    if "codes" not in index.columns:
        return list(hits)
    wanted = list(dict.fromkeys(row for one in hits for row in one.ids))
    codes = dict(zip(wanted, index.codes(wanted), strict=True))
    return [Hits(one.ids, one.scores, {"codes": [codes[i] for i in one.ids]}) for one in hits]


# What a calibration is when it leaves its gallery -----------------------------------------------


@dataclass(frozen=True)
class Transferable:
    """A calibration with what it takes to be used on another gallery without captions.

    Units:
        foreign: for features that depend on the gallery, the median and the median distance
            from it, over the foreign questions
    """

    calibration: Calibration
    vocabulary: Vocabulary
    foreign: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Transferable:
        """What `to_dict` wrote."""
        calibration = Calibration.of(stored["calibration"])
        assert calibration is not None
        foreign = {name: (float(a), float(b)) for name, (a, b) in stored["foreign"].items()}
        return cls(calibration, Vocabulary(**stored["vocabulary"]), foreign)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {
            "calibration": self.calibration.to_dict(),
            "vocabulary": self.vocabulary.to_dict(),
            "foreign": {name: list(values) for name, values in self.foreign.items()},
        }

    def moved_to(self, foreign: Mapping[str, tuple[float, float]]) -> Calibration:
        """The calibration of a gallery where foreign questions have other features."""
        centres, scales = list(self.calibration.centres), list(self.calibration.scales)
        for at, name in enumerate(self.calibration.names):
            if name in foreign and name in self.foreign:
                (old, wide), (new, broad) = self.foreign[name], foreign[name]
                stretch = broad / wide if wide > 0 and broad > 0 else 1.0
                centres[at] = new + (centres[at] - old) * stretch
                scales[at] *= stretch
        return replace(self.calibration, centres=tuple(centres), scales=tuple(scales))


def median_and_deviation(foreign: Table) -> dict[str, tuple[float, float]]:
    """Median and median distance from it, of the features that depend on the gallery."""
    names = [name for name in foreign if name not in (LIKELIHOOD, "known")]
    middle = {name: float(np.median(foreign[name])) for name in names}
    return {
        name: (middle[name], float(np.median(np.abs(foreign[name] - middle[name]))))
        for name in names
    }


def foreign_features(index: Index, space: Space, foreign: Sequence[str]) -> Table:
    """The features of foreign questions on a gallery of which no captions are known."""
    questions = questions_of(foreign, space)
    hits = answers_to(index, space, questions)
    names = [n for n in names_for(space, has_codes="codes" in index.columns) if n == CODES]
    return answer_features(space, ["level", *names], questions, hits, Vocabulary(0, {}))
