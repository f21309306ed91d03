"""Features that the confidence of an answer is computed from, in calibration and in searches.

Of answers to words, the probability that they are relevant:

- ``level``: mean cosine of the first ten hits. One hit alone says little: the best of many photos
  always has some cosine, but where a thing is there, several photos come near.
- ``codes``: mean log p(a hit's codes | words) over the first ten
- ``likelihood``: mean log p(words | first hit), low for words that the model seldom or never read
- ``known``: the share of the words that captions of such photos have (`Vocabulary`)

A dual encoder has the level and the known words.

Of the first hit of any query, the probability that it is the right one, beside its cosine and its
margin to the second:

- ``likelihood``: as above
- ``spread``: the dispersion of sampled vectors of the query; a vague query has a large one

Whether a hit is relevant is judged by the captions that people gave it. A caption asks for what it
shows, not for the one photo that it was written for: other photos may answer as well. The match of
words with a photo is the share of them that its captions hold; rare words count more, by the
logarithm of how rare they are among the photos, and words that all photos have count nothing. It is
a coarse judge (it knows no synonyms), good for means, not for one photo.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.search.index.hits import Hits
from fourm_lite.search.likelihood_scores import Likelihood, LikelihoodReranker, codes_of
from fourm_lite.search.space import TEXT, Inputs, Space

_WORD = re.compile(r"\w+")
_ENDINGS = ("ing", "ies", "es", "ed", "s")
LEAST = 3
"""Letters that are left of a word without its ending."""


def stem(word: str) -> str:
    """A word without the commonest English endings.

    >>> [stem(w) for w in ("dogs", "running", "run", "climbed", "bikes", "bike")]
    ['dog', 'run', 'run', 'climb', 'bik', 'bik']
    """
    ending = next((e for e in _ENDINGS if word.endswith(e)), "")
    short = word.removesuffix(ending) if len(word) - len(ending) >= LEAST else word
    if len(short) > LEAST and short[-1] == short[-2]:
        short = short[:-1]
    return short.removesuffix("e") if len(short) > LEAST else short


def stems(text: str) -> frozenset[str]:
    """The words of a text, without their endings."""
    return frozenset(stem(word) for word in _WORD.findall(text.lower()))


@dataclass(frozen=True)
class CaptionRelevance:
    """Judges photos by their captions.

    Units:
        captions: by photo, the words of each of its captions
        counts: how many photos have a word
    """

    captions: Mapping[Any, Sequence[frozenset[str]]]
    counts: Counter[str] = field(repr=False)

    @classmethod
    def of(cls, captions: Mapping[Any, Iterable[str]]) -> CaptionRelevance:
        """A judge of photos with captions."""
        words = {photo: [stems(text) for text in texts] for photo, texts in captions.items()}
        counts = Counter(w for some in words.values() for w in frozenset().union(*some))
        return cls(words, counts)

    def match(self, text: str, photo: Any) -> float | None:
        """The share of the words that a photo's captions hold, in 0..1.

        The text itself is no witness where it is one of them. None for a photo without captions,
        and for a text without a word that tells photos apart.
        """
        known, asked = self.captions.get(photo), stems(text)
        if not known:
            return None
        weights = {word: rarity(self.counts[word], len(self.captions)) for word in asked}
        others = [words for words in known if words != asked] or known
        return _share(weights, frozenset().union(*others))

    def words_of(self, photo: Any) -> frozenset[str]:
        """The words of a photo's captions."""
        return frozenset().union(*self.captions.get(photo, ()))


@dataclass(frozen=True)
class Vocabulary:
    """The words that photos like those of a gallery are captioned with.

    Units:
        photos: how many were counted
        counts: how many of them have a word; words that too few have are left out
    """

    photos: int
    counts: Mapping[str, int] = field(repr=False)

    @classmethod
    def of(cls, photos: Sequence[frozenset[str]], *, gallery: int) -> Vocabulary:
        """The words that a gallery of so many photos may be expected to have at least once."""
        counts = Counter(word for words in photos for word in words)
        least = max(1, round(len(photos) / max(gallery, 1)))
        return cls(len(photos), {w: n for w, n in sorted(counts.items()) if n >= least})

    def known(self, text: str, own: frozenset[str] = frozenset()) -> float:
        """The share of the words of a text that are known, rare ones counting more, in 0..1.

        Args:
            text: a query
            own: words of one of the photos that were counted, which is not to count here
        """
        counts = {word: self.counts.get(word, 0) - (word in own) for word in stems(text)}
        weights = {word: rarity(count, self.photos) for word, count in counts.items()}
        share = _share(weights, {word for word, count in counts.items() if count > 0})
        return 1.0 if share is None else share

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {"photos": self.photos, "counts": dict(self.counts)}


def rarity(count: int, photos: int) -> float:
    """How much a word counts that so many photos have: 0 where all do."""
    return max(0.0, math.log((photos + 0.5) / (max(count, 0) + 0.5)))


def _share(weights: Mapping[str, float], held: Collection[str]) -> float | None:
    total = sum(weights.values())
    return sum(w for word, w in weights.items() if word in held) / total if total else None


LEVEL, CODES, LIKELIHOOD, KNOWN = "level", "codes", "likelihood", "known"
DISPERSION = "spread"  # as stored calibrations name it
SAMPLES = 8
"""Vectors drawn for the dispersion of a query."""
FIRST = 10
"""Hits that make an answer: what a person looks at."""
FEWEST = 3
"""Words, articles not counted, of a query whose answer gets a probability."""
ARTICLES = frozenset({"a", "an", "the"})
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

    @property
    def is_short(self) -> bool:
        """Whether it has too few words for a probability.

        >>> [Question(text, {}).is_short for text in ("a dog", "a dog on grass")]
        [True, False]
        """
        return sum(w not in ARTICLES for w in _WORD.findall(self.text.lower())) < FEWEST

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
