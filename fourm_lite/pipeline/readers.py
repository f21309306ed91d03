"""From what a person has (a path, a picture, an array, a text) to tokens of one modality.

A picture is cut to its centred square and resized to what the model reads; bytes (uint8) are one
too. A row of integers is token ids, a map of them classes, as the tokenizer numbers them; floats
are values that the model or the tokenizer reads as they are: normalised pixels, features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import FourMError, ShapeError, UnknownNameError, suggest
from fourm_lite.modalities.array_codecs import FeatureCodec, RasterCodec
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.class_maps import LabelCodec
from fourm_lite.modalities.codecs import codec_of, tile_codec
from fourm_lite.modalities.pictures import SPARE
from fourm_lite.modalities.pixel_codecs import ImageCodec, not_normalized
from fourm_lite.modalities.spec import Codec, Crop, Modality
from fourm_lite.pipeline.caption_vectors import all_unknown, vector_of
from fourm_lite.pipeline.given import TEXT
from fourm_lite.pipeline.inner_tokens import INNER
from fourm_lite.pipeline.plain_values import (
    as_picture,
    bytes_of,
    finite,
    is_file,
    is_numbers,
    is_token_ids,
    tensor_of,
    token_ids,
)
from fourm_lite.pipeline.sky_values import tokens_of
from fourm_lite.pipeline.tokenizers import Tokenizers, is_said_by_codec, vocabulary
from fourm_lite.reading.regular import read_bytes
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.sequences import FORMATS
from fourm_lite.tokenization.words.spans import Marks
from fourm_lite.tokenization.words.text import TextTokenizer

log = logging.getLogger(__name__)
FAR = 100.0
"""Deviations from its mean in which no pixel of a tile lies, but any number of a satellite does."""


@dataclass(frozen=True)
class Reader:
    """Reads values of a model's modalities; every result is a batch of one.

    `any_size`: whether the model reads normalised pixels of any size in whole patches.
    """

    tokenizers: Tokenizers
    any_size: bool = False

    def read(self, entry: Modality, value: Any) -> Tokens:
        """One value as given tokens.

        Raises:
            FourMError: the value is not of this modality; the message says what is expected
        """
        try:
            return _READERS[entry.kind](self, entry, value)
        except OSError as error:
            if isinstance(error, FourMError):
                raise
            raise FourMError(f"'{entry.name}': cannot read {value!r}: {error}") from error

    def pixels(self, entry: Modality, value: Any) -> Tokens:
        """A picture as the patches of a pixel modality."""
        image = self._image(entry, codec_of(entry), value, entry.image_size)
        wanted, patch = entry.value_shape(1), entry.patch_size or 1
        if self.any_size and image.ndim == 3 and image.shape[0] == entry.channels:
            rows, columns = (side // patch for side in image.shape[1:])
            if rows and columns and image.shape[1:] == (rows * patch, columns * patch):
                return Tokens.given(image[None], length=rows * columns)
        if tuple(image[None].shape) != wanted:
            raise ShapeError(
                f"'{entry.name}' expects float32{list(wanted[1:])} or a picture"
                f"{f', or other sides that are multiples of {patch}' * self.any_size}, "
                f"got {list(image.shape)}"
            )
        return Tokens.given(image[None], length=entry.max_tokens)

    def grid(self, entry: Modality, value: Any) -> Tokens:
        """Token ids, or a raw value that the modality's tokenizer reads."""
        ids = token_ids(value)
        if ids is None:
            ids = self._tokenized(entry, value)
        else:
            _check_ids(entry, ids)
        if self.any_size and ids.ndim == 1 and len(ids):  # the model says what grids there may be
            return Tokens.given(ids[None].long(), length=len(ids))
        if ids.shape != (entry.max_tokens,):
            raise ShapeError(
                f"'{entry.name}' has {entry.max_tokens} tokens a sample, got {list(ids.shape)}"
            )
        return Tokens.given(ids[None].long(), length=entry.max_tokens)

    def _tokenized(self, entry: Modality, value: Any) -> Tensor:
        """What the modality's tokenizer makes of a value: int64[L]."""
        tokenizer = self.tokenizers.opened(entry)
        if not isinstance(tokenizer, VQTokenizer):
            return tokens_of(tokenizer, entry, value)
        raw = self._raw(entry, tokenizer, value)[None].to(tokenizer.quant_proj.weight.device)
        return tokenizer.tokenize_flat(raw).cpu()[0]

    def sequence(self, entry: Modality, value: Any) -> Tokens:
        """A text, a structured value, or token ids."""
        ids = token_ids(value)
        if ids is not None and len(ids) == FORMATS[entry.text_format].numbers:
            ids = None
        if ids is None and is_said_by_codec(entry):
            ids = self._tokenized(entry, value)
        elif ids is None:
            ids = torch.tensor(self.text_ids(entry, value), dtype=torch.int64)
        if ids.numel() > (most := entry.max_given or entry.max_tokens):
            raise FourMError(
                f"'{entry.name}' may hold {most} tokens, got {ids.numel()}; shorten it"
            )
        return Tokens.given(ids[None].long(), length=ids.numel())

    def text_ids(self, entry: Modality, value: Any) -> list[int]:
        """The ids of a text, its end included; a structured value is said in words first."""
        tokenizer, form = self.tokenizers.text(entry), FORMATS[entry.text_format]
        # Fields and numbers stand first in a vocabulary; a format may have just these.
        rows, words = entry.vocab_size or 0, tokenizer.vocab_size
        is_cut = not form.is_plain and rows < words
        has_own = vocabulary(entry) != TEXT and rows > words  # a model's rows that no word has
        if rows != words and not (is_cut or has_own):
            raise FourMError(
                f"'{entry.name}' has {entry.vocab_size} words, the text tokenizer "
                f"{tokenizer.vocab_size}: it belongs to another model"
            )
        if isinstance(value, Path):
            value = codec_of(entry).read(read_bytes(value))
        text = value if isinstance(value, str) else _said(entry, value)
        if form.is_plain:
            _refuse_unknown(entry, text, tokenizer)
        ids = [*tokenizer.encode(form.spell(text)), tokenizer.eos]
        if not form.is_plain and tokenizer.unk in ids:
            raise FourMError(f"'{entry.name}': the vocabulary lacks a part of {text!r:.80}")
        if max(ids) >= (entry.vocab_size or 0):
            raise FourMError(
                f"'{entry.name}' says values of the format {entry.text_format!r} alone, got the "
                f"text {text!r:.80}; give a value, or a text of that form"
            )
        return ids

    def features(self, entry: Modality, value: Any) -> Tokens:
        """Embeddings float[L, E] of at most the modality's length, or a text that has them."""
        if entry.raw is not None and isinstance(value, str):
            return vector_of(self.tokenizers.source, entry, value)
        array = (
            FeatureCodec(channels=entry.channels).read(bytes_of(value)) if is_file(value) else value
        )
        rows = finite(entry, tensor_of(array).float())
        if rows.ndim != 2 or rows.shape[1] != entry.channels or rows.shape[0] > entry.max_tokens:
            raise ShapeError(
                f"'{entry.name}' expects float[L <= {entry.max_tokens}, {entry.channels}], "
                f"got {list(rows.shape)}"
            )
        return Tokens.given(rows[None], length=rows.shape[0])

    def _raw(self, entry: Modality, tokenizer: VQTokenizer, value: Any) -> Tensor:
        codec = raw_codec(entry, tokenizer)
        if isinstance(codec, RasterCodec) and codec.num_labels and is_numbers(value):
            labels = tensor_of(value).long()
            maps = labels if labels.ndim == 3 else labels[None]
            crop = _centered(maps.shape[-2], maps.shape[-1], _raw_size(entry, tokenizer))
            return codec.cut(maps, None if self.any_size else crop)
        if isinstance(codec, FeatureCodec):
            value = codec.read(bytes_of(value)) if is_file(value) else value
            return finite(entry, tensor_of(value).float())
        return self._image(entry, codec, value, _raw_size(entry, tokenizer))

    def _image(
        self, entry: Modality, codec: Codec, value: Any, size: int | tuple[int, int] | None
    ) -> Tensor:
        """A picture cut to its centred square; floats are taken as they are."""
        if isinstance(codec, LabelCodec) and isinstance(value, Tensor | np.ndarray):
            labels = tensor_of(value)
            if labels.ndim != 2:
                raise ShapeError(
                    f"'{entry.name}' expects a class map int[H, W], a PNG or a PIL picture of one "
                    f"channel, got {labels.dtype}{list(labels.shape)}"
                )
            return codec.from_numbers(labels, _centered(labels.shape[0], labels.shape[1], size))
        if is_numbers(value):
            return _normalized(entry, codec, tensor_of(value))
        if isinstance(codec, RasterCodec):
            if not is_file(value):
                raise FourMError(
                    f"'{entry.name}' expects a GeoTIFF tile, its path or its bytes, or "
                    f"standardised floats, got {type(value).__name__}"
                )
            values = codec.read(bytes_of(value))
            return codec.cut(values, _centered(values.shape[1], values.shape[2], size))
        shown = size if isinstance(size, int) else max(size or (0,))
        is_photo = isinstance(codec, ImageCodec) and codec.channels == 3 and shown
        least = SPARE * shown if is_photo else None
        picture = as_picture(value, entry.name, least)
        read = getattr(codec, "from_picture", None)
        if read is None:
            raise FourMError(
                f"'{entry.name}' is not read from pictures, got {type(value).__name__}"
            )
        return read(picture, _centered(picture.height, picture.width, size))


def _check_ids(entry: Modality, ids: Tensor) -> None:
    low, high = (int(v) for v in ids.long().aminmax()) if ids.numel() else (0, 0)
    if low < 0 or high >= (entry.vocab_size or 0):
        raise ShapeError(
            f"'{entry.name}' has the ids 0..{(entry.vocab_size or 0) - 1}, got {low}..{high}; was "
            "it tokenized by another tokenizer?"
        )


def _centered(height: int, width: int, size: int | tuple[int, int] | None) -> Crop | None:
    return Crop.center(height, width, size) if size else None


def _raw_size(entry: Modality, tokenizer: VQTokenizer) -> int | tuple[int, int] | None:
    """Height and width of what becomes the grid's tokens: class maps are often small."""
    if entry.grid is None:
        return entry.image_size
    patch = tokenizer.config.patch_size
    return entry.grid[0] * patch, entry.grid[1] * patch


def _normalized(entry: Modality, codec: Codec, numbers: Tensor) -> Tensor:
    """Floats that are normalised pixels already.

    Raises:
        ShapeError: whole numbers of another type than a picture's, or floats that are not
            normalised
    """
    if not numbers.is_floating_point():
        raise ShapeError(
            f"'{entry.name}' expects normalised floats or a uint8 picture, got "
            f"{numbers.dtype}{list(numbers.shape)}; convert it to uint8 if it holds 0..255"
        )
    values = finite(entry, numbers.float())
    if isinstance(codec, RasterCodec) and float(values.abs().max()) > FAR:
        raise ShapeError(
            f"'{entry.name}' expects standardised pixels, got values up to "
            f"{float(values.abs().max()):.0f}; the path of a tile is standardised for you, arrays "
            f"by fourm_lite.pipeline.terramind.standardized(values, '{entry.name}')"
        )
    if not isinstance(codec, ImageCodec):
        return values
    if said := not_normalized(values, codec.normalization):
        raise ShapeError(f"'{entry.name}' {said}")
    return values


def raw_codec(entry: Modality, tokenizer: VQTokenizer) -> Codec:
    """How the raw values of a grid are read and shown: its raw modality's way, if it names one."""
    if (tiles := tile_codec(entry)) is not None:
        classes = tokenizer.config.n_channels
        return replace(tiles, num_labels=classes) if classes != len(tiles.mean) else tiles
    if entry.raw is not None and entry.raw in MODALITIES:
        codec = codec_of(MODALITIES[entry.raw])
        reads_imagenet = tokenizer.config.undo_std and isinstance(codec, ImageCodec)
        return ImageCodec(normalization="imagenet") if reads_imagenet else codec
    config = tokenizer.config
    if config.n_labels is not None:
        names = config.label_names or ()
        return LabelCodec(num_labels=config.n_labels, offset=0, names=names)
    if config.n_channels in (1, 3):
        return ImageCodec(channels=config.n_channels)
    return FeatureCodec(channels=config.n_channels)


def _refuse_unknown(entry: Modality, text: str, tokenizer: TextTokenizer) -> None:
    """Refuses a text of which the model understands nothing; a part of it is told."""
    if all_unknown(text, tokenizer):
        raise FourMError(
            f"'{entry.name}': the model's vocabulary holds no word of {text!r:.80}; say it in "
            "other words, in the language of the captions that it learnt from"
        )
    if unknown := tokenizer.unknown_words(text)[0]:
        log.warning("'%s': the model does not know %s", entry.name, ", ".join(map(repr, unknown)))


def _said(entry: Modality, value: Any) -> str:
    try:
        return FORMATS[entry.text_format].text(value)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise FourMError(
            f"'{entry.name}' expects a text or a value of the format {entry.text_format!r}, got "
            f"{type(value).__name__}: {error}"
        ) from error


_READERS: Mapping[str, Callable[[Reader, Modality, Any], Tokens]] = {
    "pixels": Reader.pixels,
    "grid": Reader.grid,
    "sequence": Reader.sequence,
    "features": Reader.features,
}


def collate(items: Sequence[Mapping[str, Tokens]]) -> TokenBatch:
    """Joins batches of one; what an item lacks is there and hidden.

    Sequences are padded to the longest of the batch.
    """
    names = dict.fromkeys(name for item in items for name in item)
    return TokenBatch({name: _join([item.get(name) for item in items]) for name in names})


def _join(parts: Sequence[Tokens | None]) -> Tokens:
    present = [p for p in parts if p is not None]
    length = max(p.length for p in present)
    like = present[0]
    sizes = {tuple(p.value.shape[1:]) for p in present if p.value.ndim == 4}
    if len(sizes) > 1:
        raise ShapeError(f"pictures of one batch have one size, got {sorted(sizes)}")
    rows = [(like.hidden() if p is None else p).padded(length) for p in parts]
    return Tokens(
        torch.cat([r.value for r in rows]),
        inputs=torch.cat([r.inputs for r in rows]),
        targets=torch.cat([r.targets for r in rows]),
    )


def whole_text(tokens: Tokens, marks: Marks) -> Tokens:
    """A text as the decoder says it whole: the first sentinel, its ids, the second sentinel."""
    ids = tokens.value[0].tolist()
    whole = torch.tensor([[marks.sentinel(1), *ids, marks.sentinel(2)]])
    return Tokens.given(whole, length=whole.shape[1])


def read_entries(
    items: Iterable[Mapping[str, Any]], inputs: Mapping[str, Modality]
) -> list[Modality]:
    """The modalities whose values a tokenizer must read: grids and texts that are no token ids."""
    keys = {key for item in items for key, value in item.items() if not is_token_ids(value)}
    entries = (inputs[find_modality(key, inputs, role="input")] for key in sorted(keys))
    return [m for m in entries if m.kind in ("grid", "sequence")]


def vq_entries(entries: Iterable[Modality], *, shown: bool) -> list[Modality]:
    """Those of them with a tokenizer; what stands inside a text is decoded where it is shown."""
    return [
        m
        for m in entries
        if m.kind == "grid" or is_said_by_codec(m) or (shown and m.text_format in INNER)
    ]


def find_modality(name: str, known: Mapping[str, Modality], *, role: str) -> str:
    """The modality that a name stands for: "rgb" -> "rgb@224", "depth" -> "tok_depth@224".

    Raises:
        UnknownNameError: no modality, or more than one, is called so
    """
    if not isinstance(name, str):
        raise UnknownNameError(
            f"a {role} is named by a text, got {name!r:.200}; it is one of {sorted(known)}"
        )
    if name in known:
        return name
    for n, entry in known.items():
        names = entry.input_names if role == "input" else entry.target_names
        if name.lower() in names:
            return n
    for spelling in _SPELLINGS:
        found = [n for n, entry in known.items() if spelling(entry) == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(f"{name!r} may be any of {found} as {role}; write the full name")
    raise UnknownNameError(
        f"this model has no {role} {name!r}; it has {sorted(known)}.{suggest(name, known)}"
    )


_SPELLINGS: tuple[Callable[[Modality], str], ...] = (
    lambda entry: entry.stem,
    lambda entry: entry.stem.removeprefix("tok_"),
    lambda entry: entry.tokenizer or entry.stem,
)
