"""From tokens of one modality back to what a person can look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.errors import FourMError, NotFetchedError, ShapeError
from fourm_lite.modalities.array_codecs import FeatureCodec
from fourm_lite.modalities.codecs import (
    Key,
    RasterCodec,
    TextCodec,
    TokenCodec,
    codec_of,
    legend_of,
)
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.given import TEXT
from fourm_lite.pipeline.inner_tokens import INNER
from fourm_lite.pipeline.readers import raw_codec
from fourm_lite.pipeline.sky_values import value_of_tokens
from fourm_lite.pipeline.tokenizers import (
    NO_TEXT,
    Tokenizers,
    is_said_by_codec,
    no_words,
    places,
    vocabulary,
)
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.sequences import FORMATS

if TYPE_CHECKING:
    from PIL.Image import Image


CUT = " …"
"""What a generated text ends with where the model did not come to its end."""


@dataclass(frozen=True)
class Generated:
    """One modality of one item.

    Shapes:
        tokens: int64[L]; a text's special tokens included
        value: str; what a text stands for (boxes, colours...); or float32[C, H, W] / [C] of a
            grid, int64[H, W] for class maps; a number, or arrays by name, of a codec of values;
            None where no tokenizer is known
        confidence: the mean probability of the tokens written; None for what was given
        reason: why the tokens could not be decoded; `picture` shows them then
        is_measured: whether the value has units of its own, which `picture` does not show
        title: what the modality is called in words
        legend: what stands beside the picture: classes, colours, or the rows of a table
    """

    modality: str
    tokens: npt.NDArray[np.int64]
    value: Any
    picture: Image | str = field(repr=False)
    text: str | None = None
    confidence: float | None = None
    reason: str | None = None
    is_measured: bool = False
    title: str = ""
    legend: tuple[Key, ...] = ()

    def __str__(self) -> str:
        return self.text if self.text is not None else f"{self.modality} {self.tokens.shape}"

    def to_json(self) -> dict[str, Any]:
        """JSON values: tokens, text, legend, and a structured `value` as lists and objects.

        A vector's `value` is its numbers; that of tokens which could not be decoded is null, with
        the reason beside it.
        """
        out: dict[str, Any] = {"tokens": self.tokens.tolist()}
        if self.reason is not None:
            out |= {"value": None, "reason": self.reason}
        elif isinstance(self.value, np.ndarray) and self.value.ndim == 1:
            out["value"] = [round(float(x), 6) for x in self.value]
        if self.text is not None:
            out["text"] = self.text
            if not isinstance(self.value, str):
                out["value"] = _as_json(self.value)
        if self.confidence is not None:
            out["confidence"] = round(self.confidence, 6)
        if self.legend:
            out["legend"] = [asdict(key) for key in self.legend]
        return out | ({"title": self.title} if self.title else {})


def _as_json(value: Any) -> Any:
    """A structured value: records as objects, tuples as lists, masks as COCO's run lengths."""
    if isinstance(value, np.ndarray):
        return _run_lengths(value)
    if is_dataclass(value):
        # what a tokenizer adds to a value (a mask, joints) is left out where it is not known
        known = [f.name for f in fields(value) if f.compare or getattr(value, f.name) is not None]
        return {name: _as_json(getattr(value, name)) for name in known}
    if isinstance(value, Mapping):
        return {name: _as_json(part) for name, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return [_as_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def _run_lengths(mask: npt.NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed form: lengths of runs down the columns, the first one of 0s."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def mean_confidence(steps: Sequence[Tensor]) -> list[float | None]:
    """The mean probability of what the steps of one target wrote; None where they wrote nothing.

    Shapes:
        steps: float[B, k] each, NaN where nothing was written
        returns: B numbers
    """
    means = torch.cat(list(steps), dim=1).nanmean(dim=1).tolist()
    return [None if math.isnan(mean) else mean for mean in means]


@dataclass(frozen=True)
class Writer:
    """Turns tokens into values and pictures.

    Args:
        tokenizers: of the model
        allow_tokens: whether tokens may be left as they are where a tokenizer cannot be fetched
    """

    tokenizers: Tokenizers
    allow_tokens: bool = False

    def write(
        self, entry: Modality, ids: Tensor, confidence: float | None, seed: int = 0
    ) -> Generated:
        """One item's tokens int64[L] as a value and a picture; the reason where there is none.

        Raises:
            NotFetchedError: a tokenizer is not here, and tokens are not allowed instead
        """
        tokens = ids.cpu().numpy().astype(np.int64)
        try:
            if entry.kind == "sequence":
                made = self._sequence(entry, tokens, confidence)
            else:
                made = self._grid(entry, tokens, confidence, seed)
        except NotFetchedError as error:
            if not self.allow_tokens:
                raise
            made = _undecoded(entry, tokens, confidence, str(error))
        return replace(made, title=entry.title or entry.name)

    def _sequence(
        self, entry: Modality, tokens: npt.NDArray[np.int64], confidence: float | None
    ) -> Generated:
        if is_said_by_codec(entry):
            return self._value(entry, tokens, confidence)
        if not self.tokenizers.speaks(entry):
            name = vocabulary(entry)
            reason = NO_TEXT if name == TEXT else no_words(name)
            return _undecoded(entry, tokens, confidence, reason)
        try:
            text = self.tokenizers.text(entry).detokenize(torch.from_numpy(tokens))[0]
        except ShapeError as error:  # a model has more rows than its vocabulary words
            return _undecoded(entry, tokens, confidence, f"'{entry.name}': {error}")
        if FORMATS[entry.text_format].is_plain:
            is_cut = confidence is not None and self.tokenizers.text(entry).eos not in tokens
            text += CUT if is_cut and text else ""
            return Generated(entry.name, tokens, text, text, text, confidence)
        value = FORMATS[entry.text_format].parse(text)
        if entry.text_format in INNER and self.tokenizers.has(entry):
            value = INNER[entry.text_format](value, self.tokenizers.vq(entry))
        picture, legend = self._shown(entry, value, text)
        return Generated(entry.name, tokens, value, picture, text, confidence, legend=legend)

    def _value(
        self, entry: Modality, tokens: npt.NDArray[np.int64], confidence: float | None
    ) -> Generated:
        """What a codec of values says; ids that stand for nothing stay tokens."""
        if not self.tokenizers.has(entry):
            return _undecoded(entry, tokens, confidence, self.tokenizers.lacks(entry))
        codec = self.tokenizers.opened(entry)
        try:
            value, shown = value_of_tokens(codec, entry, torch.from_numpy(tokens))
        except ShapeError as error:  # a model has more ids than its codec
            return _undecoded(entry, tokens, confidence, f"'{entry.name}': {error}")
        text = shown if isinstance(shown, str) else None
        is_measured = not isinstance(shown, str)
        return Generated(
            entry.name, tokens, value, shown, text, confidence, is_measured=is_measured
        )

    def _shown(self, entry: Modality, value: Any, text: str) -> tuple[Image | str, tuple[Key, ...]]:
        codec = codec_of(entry)
        try:
            if isinstance(codec, TextCodec):
                return text, ()
            return codec.picture(value), legend_of(codec, value)
        except FourMError:  # a value that cannot be drawn, such as no colours at all
            return text or "(nothing)", ()

    def _grid(
        self, entry: Modality, tokens: npt.NDArray[np.int64], confidence: float | None, seed: int
    ) -> Generated:
        if not self.tokenizers.has(entry):
            return _undecoded(entry, tokens, confidence, self.tokenizers.lacks(entry))
        tokenizer = self.tokenizers.opened(entry)
        if not isinstance(tokenizer, VQTokenizer):
            return self._value(entry, tokens, confidence)
        ids = torch.from_numpy(tokens)[None]
        options: dict[str, Any] = {}
        if tokenizer.config.is_diffusion:
            options["generator"] = torch.Generator().manual_seed(seed)
        device = tokenizer.quant_proj.weight.device
        grid = places(entry, tokenizer)
        value = tokenizer.detokenize(ids.to(device), grid=grid, **options)[0].cpu().float()
        codec = FeatureCodec() if value.ndim == 1 else raw_codec(entry, tokenizer)
        tiles = codec if isinstance(codec, RasterCodec) else None
        if tokenizer.config.n_labels is not None or (tiles and tiles.num_labels):
            value = value.argmax(dim=0)
        elif tiles is not None:
            value = tiles.restored(value)
        return Generated(
            entry.name, tokens, value.numpy(), codec.picture(value), None, confidence,
            is_measured=bool(tiles), legend=legend_of(codec, value),
        )  # fmt: skip


def _undecoded(
    entry: Modality, tokens: npt.NDArray[np.int64], confidence: float | None, reason: str
) -> Generated:
    """Tokens that stay tokens: their numbers, or a coloured square each."""
    if entry.kind == "sequence":
        picture: Image | str = " ".join(map(str, tokens.tolist()))
    else:
        picture = TokenCodec(vocab_size=entry.vocab_size).picture(torch.from_numpy(tokens))
    return Generated(entry.name, tokens, None, picture, None, confidence, reason)
