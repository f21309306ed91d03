"""`Search`: an index and the model that made it, asked in words, pictures or any modality.

search = Search.open("photos.idx")
hits = search(caption="a dog on a beach", k=20, rerank=100)
print(hits.to_rows())
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.embedders.rerankers import PairReranker
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.search.calibration.answer_features import (
    DISPERSION,
    FIRST,
    LIKELIHOOD,
    SAMPLES,
    Question,
    Vocabulary,
    answer_features,
    first_hit_features,
)
from fourm_lite.search.calibration.calibrate import (
    DEPTH_KEY,
    OF_MODEL,
    RERANKED,
    SAMPLES_KEY,
    VOCABULARY,
    rerank_choice,
)
from fourm_lite.search.calibration.probability import (
    RELEVANCE,
    SHORT,
    Calibration,
    with_confidence,
)
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.manifest import OTHERWISE, Manifest, allow, require_allowed
from fourm_lite.search.likelihood_scores import Likelihood, LikelihoodReranker
from fourm_lite.search.query import Query, asked_for, query_vectors
from fourm_lite.search.rerank import Reranker, as_reranker, check_choices, rerank
from fourm_lite.search.rerank_weights import NOTHING_FITTED, Choice
from fourm_lite.search.search_file import Given, Weights
from fourm_lite.search.spaces import CENTRED, Space, is_embedder, open_space
from fourm_lite.unit import Floats

log = logging.getLogger(__name__)

PLACES = ("tokenizers", "text_tokenizer")
"""Options of a model, kept in a manifest, that name a place."""
OF_INDEX = ("target", "decode", "steps", "samples", "think")
"""Options of a model, kept in a manifest, that its queries share."""
INSIDE = ("id", "vector", "content_hash", "row_hash")
"""Columns that an index needs and a hit does not show."""


@dataclass(frozen=True)
class Ask:
    """One of several questions; the fields are the arguments of `Search`."""

    query: Query
    k: int = 10
    where: str | None = None
    rerank: int = 0
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.k < 1 or self.rerank < 0:
            raise ConfigError(
                f"k is at least 1 and rerank at least 0, got {self.k} and {self.rerank}"
            )


@dataclass(frozen=True)
class Search:
    """Asks an index; make one with `Search.open`."""

    index: Index
    space: Space = None  # type: ignore[assignment]  # without it, `Search.open` was meant

    def __post_init__(self) -> None:
        if self.space is None or isinstance(self.index, (str, Path)):
            raise ConfigError(
                f"Search takes an open index and its space, got {self.index!r:.80}; did you mean "
                "Search.open('IDX'), which is then asked as search('a dog')?"
            )

    @classmethod
    def open(cls, path: str | Path, model: Any = None, **options: Any) -> Search:
        """An index with the model that its manifest names, or with another of the same space.

        Args:
            path: where the index is
            model: a 4M model or dual encoder; by default the one that made the index
            options: as `open_space`; `target`, `decode`, `think`, `tokenizers` are the index's by
                default

        Raises:
            ConfigError: there is no index, no model is known, or the spaces differ
        """
        index = Index.open(path)
        calibration = Calibration.of(index.manifest.calibration)
        if calibration is not None and not calibration.meaning:
            log.warning(
                "%s was calibrated by an earlier version: its probabilities are that the first "
                "hit is the very photo of a caption; run fourm-lite index calibrate again",
                path,
            )
        space = space_of(index.manifest, model, **options)
        require_same_space(index.manifest, space)
        if index.manifest.kind == "codes" and space.decoder is not None:
            index = Index.open(path, decode=space.decoder)
        return cls(index, space)

    def __call__(
        self,
        query: Query | Mapping[str, Any] | str | Path | None = None,
        k: int = 10,
        *,
        where: str | None = None,
        rerank: int = 0,
        weights: Mapping[str, float] | None = None,
        rerank_given: Given | None = None,
        reranker: str | PairReranker | Reranker | None = None,
        **given: Any,
    ) -> Hits:
        """The k rows that answer a query best.

        Args:
            query: a sentence, a photo, modality -> value, or a `Query`
            k: how many
            where: a SQL condition on the columns
            rerank: how many of the first hits are put in order by likelihood; 0: none
            weights: of the reranker's parts; by default those stored in the index, else those kept
                beside the model; where there are none the order by cosine stays
            rerank_given: what of a hit the query's words are said from: codes, pixels or both
                (pixels open the photo of each hit); by default what the weights were fitted for,
                and codes where a photo cannot be opened
            reranker: what reranks instead of the likelihood: a cross-encoder that reads the
                query's caption and the photos at the hits' `uri` (``hf:FOLDER_OR_ID``, or open,
                from `load_reranker`), or a callable over the wanted item and the hits
            given: more modalities, such as `caption="a dog"`

        Raises:
            FourMError: the query cannot be carried out
        """
        asked = asked_for(query, given)
        ask = Ask(asked, k, where, rerank, weights)
        check_choices(reranker, rerank, weights=weights, rerank_given=rerank_given)
        hits = self._first([ask], where)[0]
        if reranker is None:
            return self._finished(ask, hits, rerank_given)
        hits = self._matched(asked, hits, rerank, as_reranker(reranker))
        return _without_codes(hits.take(range(min(k, len(hits)))))

    def many(self, asks: Sequence[Ask]) -> list[Hits]:
        """The answer to each of several questions; their model's passes and products are shared.

        Raises:
            FourMError: one of the queries cannot be carried out
        """
        vectors = query_vectors([ask.query for ask in asks], self.space)
        found: dict[int, Hits] = {}
        for where in dict.fromkeys(ask.where for ask in asks):
            places = [i for i, ask in enumerate(asks) if ask.where == where]
            hits = self._first([asks[i] for i in places], where, [vectors[i] for i in places])
            found |= dict(zip(places, hits, strict=True))
        return [self._finished(ask, found[i]) for i, ask in enumerate(asks)]

    def _first(
        self, asks: Sequence[Ask], where: str | None, vectors: Sequence[Floats] | None = None
    ) -> list[Hits]:
        """The nearest rows, as many as reranking and confidence need."""
        if vectors is None:
            vectors = query_vectors([ask.query for ask in asks], self.space)
        columns = [n for n in self.index.columns if n not in INSIDE]
        depths = [max(ask.k, ask.rerank, FIRST) for ask in asks]
        hits = self.index.search_many(np.stack(vectors), max(depths), where, columns=columns)
        cut = [h.take(range(min(d, len(h)))) for h, d in zip(hits, depths, strict=True)]
        return self._confident([ask.query for ask in asks], cut)

    def _finished(self, ask: Ask, hits: Hits, given: Given | None = None) -> Hits:
        if ask.rerank and len(hits):
            hits = self._reranked(ask.query, hits, ask.rerank, ask.weights, given)
        return _without_codes(hits.take(range(min(ask.k, len(hits)))))

    def _matched(self, asked: Query, hits: Hits, depth: int, reranker: Reranker) -> Hits:
        _require_wanted(asked)
        return rerank(asked.item, hits, reranker, depth=depth) if len(hits) else hits

    def _reranked(
        self,
        asked: Query,
        hits: Hits,
        depth: int,
        weights: Weights | None,
        given: Given | None,
    ) -> Hits:
        _require_wanted(asked)
        extra = self.index.manifest.extra
        choice = rerank_choice(extra, self.space, given)
        if weights is not None:
            choice = Choice(weights, choice.given, "the query")
        found, choice = self._in_order(asked, hits, depth, choice, given)
        if hits.p_means in (RELEVANCE, SHORT):  # of the first hits, in whatever order
            return dataclasses.replace(
                found, p_right=hits.p_right, good_match=hits.good_match, p_means=hits.p_means
            )
        # A probability is told for the very order that it was learnt for.
        if choice == rerank_choice(extra, self.space) and depth == extra.get(DEPTH_KEY):
            calibration = Calibration.of(extra.get(RERANKED))
            more = {"cosine": float(found.columns["cosine"][0])}
            return self._sure(asked, found, calibration, more)
        return found

    def _in_order(
        self, asked: Query, hits: Hits, depth: int, choice: Choice, given: Given | None
    ) -> tuple[Hits, Choice]:
        """The hits as a choice of weights orders them, and the choice that did."""
        likelihood = Likelihood.of(self.space)
        if not choice.source:
            log.warning(NOTHING_FITTED)
        reranker = LikelihoodReranker(likelihood, choice.weights, given=choice.given)
        try:
            return rerank(asked.item, hits, reranker, depth=depth), choice
        except (FourMError, OSError) as error:
            if given is not None or choice.given == "codes" or choice.source == "the query":
                raise
            log.warning("words are said from the hits' codes instead of their pixels: %s", error)
            codes = rerank_choice(self.index.manifest.extra, self.space, "codes")
            return self._in_order(asked, hits, depth, codes, "codes")

    def _confident(self, asked: Sequence[Query], hits: Sequence[Hits]) -> list[Hits]:
        """The hits with their confidence, where it reads features that need the model."""
        calibration = Calibration.of(self.index.manifest.calibration)
        if calibration is not None and calibration.meaning == RELEVANCE:
            return self._relevant(asked, hits, calibration)
        if calibration is None or not {LIKELIHOOD, DISPERSION} & set(calibration.names):
            return list(hits)
        return [
            one if query.has_row else self._sure(query, one, calibration, {})
            for query, one in zip(asked, hits, strict=True)
        ]

    def _relevant(
        self, asked: Sequence[Query], hits: Sequence[Hits], calibration: Calibration
    ) -> list[Hits]:
        """The hits with the probability that they show what was asked for in words."""
        extra, out = self.index.manifest.extra, list(hits)
        told: dict[int, Question] = {}
        for i, query in enumerate(asked):
            question = Question.of(query.item) if len(query.terms) == 1 else None
            if question is None:
                continue
            if extra.get(OF_MODEL) and question.is_short:
                out[i] = dataclasses.replace(hits[i], p_means=SHORT)
            elif len(hits[i]):
                told[i] = question
            else:
                out[i] = with_confidence(hits[i], calibration)
        if told:
            found = answer_features(
                self.space, calibration.names, list(told.values()), [hits[i] for i in told],
                Vocabulary(**extra[VOCABULARY]),
            )  # fmt: skip
            for row, i in enumerate(told):
                own = {name: float(values[row]) for name, values in found.items()}
                out[i] = with_confidence(hits[i], calibration, **own)
        return out

    def _sure(
        self, asked: Query, hits: Hits, calibration: Calibration | None, more: dict[str, float]
    ) -> Hits:
        if calibration is None or not len(hits):
            return hits
        samples = self.index.manifest.extra.get(SAMPLES_KEY, SAMPLES)
        first = hits.take([0])
        found = first_hit_features(self.space, asked.item, first, calibration.names, samples)
        return hits if found is None else with_confidence(hits, calibration, **more, **found)


def space_of(manifest: Manifest, model: Any = None, **options: Any) -> Space:
    """The space of an index's queries, opened as its manifest says; or one that is open already.

    Raises:
        ConfigError: the manifest names no model and none is given, or one that does not ship and
            that the user never named (`search.index.manifest`)
    """
    extra = manifest.extra
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, Space):
        if given:
            raise ConfigError(f"a space is open already: leave out {', '.join(sorted(given))}")
        return model
    if model is None:
        require_allowed(manifest.model, "--model with that name (Python: model=)")
    allow([model, *(given.get(name) for name in PLACES)])
    source = model if model is not None else manifest.model
    if source is None:
        raise ConfigError(
            f"the index of the space '{manifest.space}' names no model; give one (--model)"
        )
    if is_embedder(source):  # what the manifest says of a 4M model is nothing to a dual encoder
        return open_space(source, **given)
    usual = {name: extra[name] for name in (*OF_INDEX, *PLACES) if extra.get(name) is not None}
    for name in PLACES:
        if name not in given:
            require_allowed(usual.get(name), f"--{name.replace('_', '-')} with that name")
    is_centred = manifest.space.endswith(CENTRED)  # rows that others added have no other record
    usual["center"] = extra["centre"] != "none" if "centre" in extra else is_centred
    return open_space(source, **{**usual, **given})


def require_same_space(manifest: Manifest, space: Space) -> None:
    """Refuses a model whose vectors cannot be compared with those of an index; names both.

    Who made the rows (`model`, `gallery`) may differ: two models that predict one network's
    vectors share its space.
    """
    manifest.require_space(space.name)
    for name, value in space.identity.items():
        if not manifest.fits(name, value, lambda n: space.former_fingerprints(n)):
            raise ConfigError(
                f"the index holds vectors of the space '{manifest.space}' "
                f"({name} {manifest.fingerprints[name]}), the query is of '{space.name}' "
                f"({name} {value}), and the index was made by '{manifest.model}'; {OTHERWISE}"
            )


def _require_wanted(asked: Query) -> None:
    if not asked.item:
        raise ConfigError("reranking needs something that is wanted, not only what is not")


def _without_codes(hits: Hits) -> Hits:
    columns = {name: values for name, values in hits.columns.items() if name != "codes"}
    return dataclasses.replace(hits, columns=columns)
