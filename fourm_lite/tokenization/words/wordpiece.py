"""Learning word pieces: the most frequent neighbours become one piece, again and again.

Unusual: we do not use the trainer of `tokenizers`, because equal counts fall in the order of a
hash table there, so two runs over the same texts give different vocabularies. Here they do not.

Source:
    Byte pair encoding (Sennrich et al. 2016), with the `##` of WordPiece (Schuster & Nakajima 2012)
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise

CONTINUED = "##"
Pair = tuple[str, str]


def learn_pieces(words: Mapping[str, int], *, limit: int, min_frequency: int = 2) -> list[str]:
    """Word pieces for counted words: single characters first, then merges, the most frequent first.

    Units:
        words: a word -> how often it occurs
        limit: pieces at most; characters come by frequency, so that rare ones are left out first
        min_frequency: pairs that occur less often are not merged
    """
    spelled = [(_spell(word), count) for word, count in sorted(words.items())]
    pieces = _characters(spelled)[:limit]
    merges = _Merges([s for s, _ in spelled], [c for _, c in spelled])
    known = set(pieces)
    while len(pieces) < limit:
        pair = merges.most_frequent(min_frequency)
        if pair is None:
            break
        piece = merges.apply(pair)
        if piece not in known:
            known.add(piece)
            pieces.append(piece)
    return pieces


def _spell(word: str) -> list[str]:
    return [letter if place == 0 else CONTINUED + letter for place, letter in enumerate(word)]


def _characters(spelled: list[tuple[list[str], int]]) -> list[str]:
    counts: Counter[str] = Counter()
    for symbols, count in spelled:
        for symbol in symbols:
            counts[symbol] += count
    return sorted(counts, key=lambda symbol: (-counts[symbol], symbol))


class _Merges:
    """Words as symbols, and the counts of neighbouring symbols, kept up to date."""

    def __init__(self, words: list[list[str]], counts: list[int]) -> None:
        self._words = words
        self._counts = counts
        self._pairs: Counter[Pair] = Counter()
        self._places: defaultdict[Pair, set[int]] = defaultdict(set)
        for place in range(len(words)):
            self._count(place, +1)
        self._queue = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._queue)

    def most_frequent(self, min_frequency: int) -> Pair | None:
        """The pair with the highest count, the first in the alphabet among equals."""
        while self._queue:
            count, pair = heapq.heappop(self._queue)
            now = self._pairs[pair]
            if now < min_frequency:
                continue
            if now == -count:
                return pair
            heapq.heappush(self._queue, (-now, pair))
        return None

    def apply(self, pair: Pair) -> str:
        """Joins the pair wherever it stands and returns the piece."""
        piece = pair[0] + pair[1].removeprefix(CONTINUED)
        changed: set[Pair] = set()
        for place in sorted(self._places.pop(pair)):
            self._count(place, -1)
            self._words[place] = _joined(self._words[place], pair, piece)
            changed.update(self._count(place, +1))
        for new in changed:
            heapq.heappush(self._queue, (-self._pairs[new], new))
        return piece

    def _count(self, place: int, sign: int) -> list[Pair]:
        symbols = self._words[place]
        pairs = list(pairwise(symbols))
        for pair in pairs:
            self._pairs[pair] += sign * self._counts[place]
            if sign > 0:
                self._places[pair].add(place)
        return pairs


def _joined(symbols: list[str], pair: Pair, piece: str) -> list[str]:
    joined: list[str] = []
    for symbol in symbols:
        if joined and joined[-1] == pair[0] and symbol == pair[1]:
            joined[-1] = piece
        else:
            joined.append(symbol)
    return joined
