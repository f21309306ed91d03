"""Reranking with the weights that retrieved: how well query and candidate explain each other.

Four parts, each a number for a pair of query and candidate:

- ``cosine``: the search's own score
- ``codes``: mean log p(candidate's codes | query), one forward pass a query for any number of
  candidates, whose codes are looked up in the predicted distributions
- ``caption``: mean log p(query's text | candidate), one teacher-forced pass a pair; the candidates'
  side is encoded once. What is given of a candidate is its codes, its pixels or both. A query of
  few words counts less (`search.rerank_weights.words_share`)
- ``prior``: minus mean log p(candidate) when nothing is given, so that a candidate which is likely
  anyway does not win by it: log p(x | query) - log p(x) is how much the query explains

The score is their weighted sum (`search.rerank_weights`). The third part costs most, so it is
asked for the first ``caption_depth`` by the cheap ones; what is behind them stays behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.model.likelihood import grid_log_probs
from fourm_lite.model.packing import Sheet, packed
from fourm_lite.nn.attention import blocked
from fourm_lite.nn.blocks import Context
from fourm_lite.photos.sources import read_uri
from fourm_lite.progress import Progress
from fourm_lite.search.index.hits import Hits
from fourm_lite.search.rerank_weights import (
    CAPTION_DEPTH,
    DEFAULT_WEIGHTS,
    cascade,
    weighted,
    words_share,
)
from fourm_lite.search.search_file import Given, UnseenError, check_given, check_weights
from fourm_lite.search.space import PICTURE, Inputs, Predictor, Space
from fourm_lite.unit import Floats

ROWS = 16
Pictures = Callable[[slice], Sequence[Any]]
"""Which candidates -> their pictures, opened when they are needed."""


@dataclass(frozen=True)
class Candidates:
    """Candidates made ready for scoring: their codes, and what the decoder reads of them.

    Shapes:
        codes: int64[K, L]
        context: of K rows; None where no text is to be said
    """

    codes: Tensor
    context: Context | None = None


@dataclass(frozen=True)
class Likelihood:
    """Scores pairs of queries and candidates with a model.

    Args:
        space: the 4M model and its target
        text: the modality that queries say in words and the model can predict from codes
    """

    space: Predictor
    text: str | None = None

    @classmethod
    def of(cls, space: Space) -> Likelihood:
        """The likelihoods of a space.

        Raises:
            ConfigError: one that predicts nothing, such as a dual encoder's
        """
        predictor = space.predictor
        if predictor is None:
            raise ConfigError(space.without_likelihood)
        config = predictor.pipe.model.config
        spoken = {m.name for m in config.outputs if m.kind == "sequence"}
        both = [m.name for m in config.inputs if m.name in spoken and m.text_format == "text"]
        can_read = predictor.target.name in {m.name for m in config.inputs}
        return cls(predictor, both[0] if both and can_read else None)

    def texts(self, batch: TokenBatch) -> list[Tensor | None]:
        """For each item its text's ids as the decoder says them whole; None without a text."""
        if self.text is None or self.text not in batch:
            return [None] * batch.size
        tokens, marks = batch[self.text], self.space.pipe.marks
        found: list[Tensor | None] = []
        for ids, there in zip(tokens.value, tokens.inputs, strict=True):
            own = ids[there].tolist()
            whole = torch.tensor([marks.sentinel(1), *own, marks.sentinel(2)], device=ids.device)
            found.append(whole if own else None)
        return found

    @torch.inference_mode()
    def candidates(
        self,
        codes: npt.NDArray[Any],
        pictures: Pictures | None = None,
        *,
        given: Given = "codes",
        with_text: bool = True,
        batch_size: int = 64,
    ) -> Candidates:
        """Encodes the candidates' side, once for all queries.

        Args:
            codes: int[K, L] of the target
            pictures: opens the photos of some candidates; needed where pixels are given
            given: what of a candidate texts are said from
            with_text: False where no text is to be said, which needs no encoding
            batch_size: candidates encoded together

        Raises:
            ShapeError: not one row of the target's codes a candidate
        """
        entry, model = self.space.target, self.space.pipe.model
        ids = torch.from_numpy(np.asarray(codes).astype(np.int64)).to(model.device)
        if ids.ndim != 2 or ids.shape[1] != entry.max_tokens:
            raise ShapeError(
                f"candidates of '{entry.name}' are codes [K, {entry.max_tokens}], got "
                f"{list(ids.shape)}; was the index made with another target?"
            )
        if not with_text or self.text is None or not len(ids):
            return Candidates(ids)
        contexts = []
        for start in range(0, len(ids), batch_size):
            part = slice(start, start + batch_size)
            batch = self._given(ids[part], pictures, part, check_given(given))
            contexts.append(model.encode(batch).context.tokens)
        # Every row has the same length, nothing is padded, so rows can be joined.
        return Candidates(ids, Context(torch.cat(contexts)))

    def _given(
        self, ids: Tensor, pictures: Pictures | None, part: slice, given: Given
    ) -> TokenBatch:
        """What is known of some candidates."""
        entry = self.space.target
        codes = {entry.name: Tokens.given(ids, length=entry.max_tokens)}
        if given == "codes":
            return TokenBatch(codes)
        if pictures is None:
            raise ConfigError(f"with given={given!r} the candidates' photos are needed")
        pixels = self.space.pipe.read([{PICTURE: picture} for picture in pictures(part)])
        return pixels.with_(codes) if given == "both" else pixels

    @torch.inference_mode()
    def codes_scores(self, batch: TokenBatch, candidates: Candidates) -> Floats:
        """Mean log p(candidate's codes | query), float32[B, K], by one forward pass."""
        return self._codes_scores(batch.without(self.space.target.name), batch.size, candidates)

    @torch.inference_mode()
    def codes_prior(self, candidates: Candidates) -> Floats:
        """Mean log p(candidate's codes) when nothing is given, float32[K]."""
        return self._codes_scores(TokenBatch({}), 1, candidates)[0]

    def _codes_scores(self, batch: TokenBatch, size: int, candidates: Candidates) -> Floats:
        model, name = self.space.pipe.model, self.space.target.name
        context = model.encode(batch, batch_size=size).context
        log_p = grid_log_probs(model, name, context, size)  # [B, L, V]
        index = candidates.codes.T[None].expand(size, -1, -1)  # [B, L, K]
        return np.asarray(log_p.gather(2, index).mean(dim=1).cpu().numpy())

    @torch.inference_mode()
    def text_prior(self, texts: Sequence[Tensor]) -> Floats:
        """Mean log p(text) when nothing is given, float32[T]."""
        nothing = self.space.pipe.model.encode(TokenBatch({}), batch_size=1).context
        pairs = np.stack([np.arange(len(texts)), np.zeros(len(texts), np.int64)], axis=1)
        return self._text_scores(texts, nothing, pairs, None)

    @torch.inference_mode()
    def text_scores(
        self,
        texts: Sequence[Tensor],
        candidates: Candidates,
        pairs: npt.NDArray[np.int64],
        progress: Progress | None = None,
    ) -> Floats:
        """Mean log p(text | candidate) of some pairs, float32[P].

        Shapes:
            pairs: int64[P, 2], numbers of a text and of a candidate
        """
        if self.text is None or candidates.context is None:
            raise ConfigError(
                f"this model cannot say a text from '{self.space.target.name}'; rerank by the "
                "weights cosine and codes"
            )
        return self._text_scores(texts, candidates.context, pairs, progress)

    def _text_scores(
        self,
        texts: Sequence[Tensor],
        known: Context,
        pairs: npt.NDArray[np.int64],
        progress: Progress | None,
    ) -> Floats:
        device = known.tokens.device
        out = np.empty(len(pairs), np.float32)
        rows = packed([len(text) - 1 for text in texts], pairs)
        done = 0
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            sheet = Sheet.of([[texts[pairs[p, 0]] for p in row] for row in some])
            context = known.select(torch.tensor([pairs[row[0], 1] for row in some], device=device))
            out[np.concatenate(some)] = self._means(sheet, context).cpu().numpy()
            done += sum(map(len, some))
            if progress is not None:
                progress(done, len(pairs))
        return out

    def _means(self, sheet: Sheet, context: Context) -> Tensor:
        """Mean log p of the texts of a sheet, row by row: float32[texts]."""
        assert self.text is not None
        model = self.space.pipe.model
        embedding = model.target(self.text)
        steps = embedding.step(0, int(sheet.place.max()) + 1)
        y = embedding.token_emb(sheet.ids) + steps.reshape(-1, steps.shape[-1])[sheet.place]
        same = sheet.text[:, :, None] == sheet.text[:, None, :]
        bias = blocked(same.tril(), y.dtype)[:, None]
        there = sheet.text >= 0
        logits = model.logits(model.run_decoder(y, context, bias)[there], self.text).float()
        log_p = logits.log_softmax(dim=-1).gather(1, sheet.next[there][:, None])[:, 0]
        total = torch.zeros(sheet.count, device=log_p.device)
        total.index_add_(0, sheet.text[there], log_p)
        return total / torch.bincount(sheet.text[there], minlength=sheet.count)


@dataclass(frozen=True)
class LikelihoodReranker:
    """Reranks the hits of one query; satisfies `search.rerank.Reranker`.

    The query is an item (modality -> value); hits need the column ``codes``, and ``uri`` where
    pixels are given.

    Args:
        likelihood: the model
        weights: of the parts; 0 leaves a part out, and its passes
        caption_depth: how many are scored by the caption's likelihood too
        given: what of a candidate texts are said from
    """

    likelihood: Likelihood
    weights: Mapping[str, float] = field(default_factory=lambda: DEFAULT_WEIGHTS)
    caption_depth: int = CAPTION_DEPTH
    given: Given = "codes"

    def __post_init__(self) -> None:
        check_weights(self.weights)
        check_given(self.given)

    def __call__(self, query: Inputs, candidates: Hits) -> Floats:
        """One score a candidate, float32[K].

        Raises:
            ConfigError: the hits have no codes, or nothing is left to score by
        """
        if not len(candidates):
            return np.zeros(0, np.float32)
        wanted = [n for n, w in self.weights.items() if w and n != "caption"]
        parts, texts = self._cheap(query, candidates, wanted)
        by_text = self.weights.get("caption", 0.0)
        if not by_text or not texts:
            return weighted(parts, self.weights)

        def say(rows: npt.NDArray[np.int64]) -> Floats:
            return by_text * self._caption(texts, candidates.take(rows.tolist()))

        return cascade(parts, self.weights, self.caption_depth, say)

    def parts(self, query: Inputs, candidates: Hits) -> dict[str, Floats]:
        """All parts of all candidates, float32[K] each; ``caption`` for a query with a text."""
        cheap, texts = self._cheap(query, candidates)
        return {**cheap, "caption": self._caption(texts, candidates)} if texts else cheap

    def cheap(self, query: Inputs, candidates: Hits) -> dict[str, Floats]:
        """The parts that take one pass for all candidates."""
        return self._cheap(query, candidates)[0]

    def said(self, query: Inputs, candidates: Hits) -> Floats | None:
        """Mean log p(query's text | candidate), float32[K]; None for a query without a text."""
        texts = self._texts(self.likelihood.space.pipe.read([query]))
        return self._said(texts, candidates) if texts else None

    def _cheap(
        self, query: Inputs, candidates: Hits, names: Sequence[str] = ("codes", "prior")
    ) -> tuple[dict[str, Floats], list[Tensor]]:
        """The cosine and the named parts, and the query's text."""
        batch = self.likelihood.space.pipe.read([query])
        parts = {"cosine": np.asarray(candidates.scores, np.float32)}
        if set(names) & {"codes", "prior"}:
            ready = self.likelihood.candidates(codes_of(candidates), with_text=False)
            if "codes" in names:
                parts["codes"] = np.asarray(self.likelihood.codes_scores(batch, ready)[0])
            if "prior" in names:
                parts["prior"] = -self.likelihood.codes_prior(ready)
        return parts, self._texts(batch)

    def _caption(self, texts: Sequence[Tensor], hits: Hits) -> Floats:
        return np.asarray(words_share(texts)[0] * self._said(texts, hits))

    def _texts(self, batch: TokenBatch) -> list[Tensor]:
        return [t for t in self.likelihood.texts(batch) if t is not None]

    def _said(self, texts: Sequence[Tensor], hits: Hits) -> Floats:
        pictures = None if self.given == "codes" else pictures_of(hits)
        ready = self.likelihood.candidates(codes_of(hits), pictures, given=self.given)
        pairs = np.stack([np.zeros(len(hits), np.int64), np.arange(len(hits))], axis=1)
        return self.likelihood.text_scores(texts, ready, pairs)


def pictures_of(hits: Hits, *, advice: str = "rerank with given='codes'") -> Pictures:
    """Opens the photos of hits, where their rows say they are.

    Args:
        hits: rows with a column ``uri``
        advice: what to do where a row names none

    Raises:
        ConfigError: a row names no photo
        UnseenError: photos are not there any more, or cannot be read
    """
    places = hits.columns.get("uri", [None] * len(hits))

    def open_some(part: slice) -> list[Any]:
        found = []
        lost: dict[str, Exception] = {}
        for place in places[part]:
            if not isinstance(place, str):
                raise ConfigError(
                    "reranking by pixels opens the photo of each hit, and these rows name none "
                    f"(column uri); {advice}"
                )
            try:
                found.append(open_rgb(read_uri(place)))
            except (OSError, FourMError) as error:
                lost[place] = error
        if lost:
            first, reason = next(iter(lost.items()))
            raise UnseenError(
                f"reranking by pixels opens the photo of each hit, and that of {first} cannot be "
                f"opened ({reason}); bring the index up to date with --prune, or {advice}",
                list(lost),
            ) from reason
        return found

    return open_some


def codes_of(hits: Hits) -> npt.NDArray[Any]:
    """The codes [K, L] of hits.

    Raises:
        ConfigError: they have none
    """
    codes = hits.columns.get("codes")
    if codes is None or any(row is None for row in codes):
        raise ConfigError(
            "reranking by likelihood reads the candidates' codes, and these hits have none; "
            "build the index with fourm-lite index and a 4M model"
        )
    return np.stack(codes)
