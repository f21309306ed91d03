"""What tells how sure an answer is; the same features for calibration and for searches.

Of answers to words, the probability that they are relevant:

- ``level``: mean cosine of the first ten hits. One hit alone says little: the best of many photos
  always has some cosine, but where a thing is there, several photos come near.
- ``codes``: mean log p(a hit's codes | words) over the first ten
- ``likelihood``: mean log p(words | first hit), low for words that the model seldom or never read
- ``known``: the share of the words that captions of such photos have (`search.relevance`)

A dual encoder has the level and the known words.

Of the first hit of any query, the probability that it is the right one, beside its cosine and its
margin to the second:

- ``likelihood``: as above
- ``spread``: the dispersion of sampled vectors of the query; a vague query has a large one
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.search.index.hits import Hits
from fourm_lite.search.likelihood_scores import Likelihood, LikelihoodReranker, codes_of
from fourm_lite.search.relevance import Vocabulary
from fourm_lite.search.space import TEXT, Inputs, Space

LEVEL, CODES, LIKELIHOOD, KNOWN = "level", "codes", "likelihood", "known"
DISPERSION = "spread"  # as stored calibrations name it
SAMPLES = 8
"""Vectors drawn for the dispersion of a query."""
FIRST = 10
"""Hits that make an answer: what a person looks at."""
BATCH = 32
Table = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Question:
    """Words that are asked for.

    Args:
        text: as a person wrote them
        item: what the space embeds
        own: words of a photo that the vocabulary counted and that is not to count here
    """

    text: str
    item: Inputs
    own: frozenset[str] = frozenset()

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Question | None:
        """The question of a query of words alone; None of any other."""
        text = item.get(TEXT)
        return cls(text, item) if set(item) == {TEXT} and isinstance(text, str) else None


def names_for(space: Space, *, has_codes: bool) -> tuple[str, ...]:
    """The features that a space can give on the rows of an index."""
    if space.predictor is None or not has_codes:
        return (LEVEL, KNOWN)
    says = Likelihood.of(space).text is not None
    return (LEVEL, CODES, *([LIKELIHOOD] if says else []), KNOWN)


def answer_features(
    space: Space,
    names: Sequence[str],
    questions: Sequence[Question],
    hits: Sequence[Hits],
    vocabulary: Vocabulary,
) -> Table:
    """The named features of some answers, float64[Q] each.

    Args:
        space: embedded the questions
        names: of `names_for`
        questions: as many as answers
        hits: at least one each; with codes where the features read them
        vocabulary: what counts as known
    """
    found: Table = {LEVEL: np.array([float(one.scores[:FIRST].mean()) for one in hits])}
    found[KNOWN] = np.array([vocabulary.known(q.text, q.own) for q in questions])
    if CODES in names or LIKELIHOOD in names:
        likelihood = Likelihood.of(space)
        parts = [
            _by_model(likelihood, names, questions[at : at + BATCH], hits[at : at + BATCH])
            for at in range(0, len(questions), BATCH)
        ]
        found |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: found[name] for name in names}


def _by_model(
    likelihood: Likelihood, names: Sequence[str], asked: Sequence[Question], hits: Sequence[Hits]
) -> Table:
    batch = likelihood.space.pipe.read([q.item for q in asked])
    first = [one.take(range(min(FIRST, len(one)))) for one in hits]
    ready = likelihood.candidates(codes_of(Hits.joined(first)), with_text=False)
    starts = np.cumsum([0, *map(len, first)])
    table = likelihood.codes_scores(batch, ready)
    found: Table = {}
    found[CODES] = np.array(
        [row[starts[i] : starts[i + 1]].mean() for i, row in enumerate(table)], np.float64
    )
    if LIKELIHOOD in names:
        best = likelihood.candidates(codes_of(Hits.joined([one.take([0]) for one in first])))
        texts = [text for text in likelihood.texts(batch) if text is not None]
        pairs = np.repeat(np.arange(len(asked))[:, None], 2, axis=1)
        found[LIKELIHOOD] = likelihood.text_scores(texts, best, pairs).astype(np.float64)
    return found


def first_hit_features(
    space: Space, item: Inputs, first: Hits, names: Collection[str], samples: int = SAMPLES
) -> dict[str, float] | None:
    """The named features of one query with its first hit; None where they cannot be had.

    Args:
        space: what embedded the query
        item: the query
        first: its first hit, with codes
        names: of the features; score and margin are not asked for here
        samples: as many as the calibration was fitted with
    """
    if not item or space.predictor is None:
        return None
    found: dict[str, float] = {}
    if LIKELIHOOD in names:
        said = LikelihoodReranker(Likelihood.of(space)).said(item, first)
        if said is None:
            return None
        found[LIKELIHOOD] = float(said[0])
    if DISPERSION in names:
        drawn = space.dispersion([item], samples)
        if drawn is None:
            return None
        found[DISPERSION] = float(drawn[0])
    return found
