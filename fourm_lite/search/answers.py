"""What tells whether an answer to words is relevant; the same for calibration and for searches.

- ``level``: mean cosine of the first ten hits. One hit alone says little: the best of many photos
  always has some cosine, but where a thing is there, several photos come near.
- ``codes``: mean log p(a hit's codes | words) over the first ten
- ``likelihood``: mean log p(words | first hit), low for words that the model seldom or never read
- ``known``: the share of the words that captions of such photos have (`search.relevance`)

A twin encoder has the level and the known words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import ConfigError
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.likelihood import Likelihood, codes_of
from fourm_lite.search.relevance import Vocabulary
from fourm_lite.search.space import TEXT, Item
from fourm_lite.search.spaces import ModelSpace, Space

LEVEL, CODES, LIKELIHOOD, KNOWN = "level", "codes", "likelihood", "known"
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
    item: Item
    own: frozenset[str] = frozenset()

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Question | None:
        """The question of a query of words alone; None of any other."""
        text = item.get(TEXT)
        return cls(text, item) if set(item) == {TEXT} and isinstance(text, str) else None


def names_for(space: Space, *, has_codes: bool) -> tuple[str, ...]:
    """The evidence that a space can give on the rows of an index."""
    if not isinstance(space, ModelSpace) or not has_codes:
        return (LEVEL, KNOWN)
    says = Likelihood.of(space).text is not None
    return (LEVEL, CODES, *([LIKELIHOOD] if says else []), KNOWN)


def evidence_of_answers(
    space: Space,
    names: Sequence[str],
    questions: Sequence[Question],
    hits: Sequence[Hits],
    vocabulary: Vocabulary,
) -> Table:
    """The named evidence of some answers, float64[Q] each.

    Args:
        space: embedded the questions
        names: of `names_for`
        questions: as many as answers
        hits: at least one each; with codes where the evidence reads them
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


def text_items(texts: Sequence[str], space: Space) -> tuple[tuple[Item, ...], int]:
    """A query for each text, and how many were too long and cut.

    None is refused: one that the model cannot read counts as one that it answers wrongly.
    """
    if not isinstance(space, ModelSpace):
        return tuple({TEXT: text} for text in texts), 0
    config = space.pipe.model.config
    entry = next((m for m in config.inputs if m.name == TEXT), None)
    if entry is None or entry.kind != "sequence":
        raise ConfigError(
            f"this model reads no '{TEXT}'; it reads {[m.name for m in config.inputs]}"
        )
    tokenizer = space.pipe.tokenizers.text()
    items: list[Item] = []
    cut = 0
    for text in texts:
        ids = tokenizer.encode(text)
        cut += len(ids) + 1 > entry.max_tokens
        items.append({TEXT: [*ids[: entry.max_tokens - 1], tokenizer.eos]})
    return tuple(items), cut
