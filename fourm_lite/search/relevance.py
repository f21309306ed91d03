"""Whether a hit is a good answer to words, judged by the captions that people gave it.

A caption asks for what it shows, not for the one photo that it was written for: other photos may
answer as well. The match of words with a photo is the share of them that its captions hold; rare
words count more, by the logarithm of how rare they are among the photos, and words that all photos
have count nothing. It is a coarse judge (it knows no synonyms), good for means, not for one photo.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
