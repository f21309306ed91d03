"""From what a person has (a path, a picture, an array, a text) to tokens of one modality.

A picture is cut to its centred square and resized to what the model reads; bytes (uint8) are one
too. A row of integers is token ids, a map of them classes, as the tokenizer numbers them; floats
are values that the model or the tokenizer reads as they are: normalised pixels, features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import FourMError, ShapeError, UnknownNameError, suggest
from fourm_lite.modalities import pictures
from fourm_lite.modalities.array_codecs import FeatureCodec, LabelCodec, RasterCodec
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.codecs import codec_of
from fourm_lite.modalities.pixel_codecs import ImageCodec, not_normalized
from fourm_lite.modalities.spec import Codec, Crop, Modality
from fourm_lite.pipeline.caption_vectors import all_unknown, sentence_encoder, vector_of_text
from fourm_lite.pipeline.inner_tokens import INNER
from fourm_lite.pipeline.tokenizers import Tokenizers
from fourm_lite.reading.regular import read_bytes
from fourm_lite.tokenization.vq.inputs import as_tensor
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.sequences import FORMATS
from fourm_lite.tokenization.words.text import TextTokenizer

_PIXELS = (torch.uint8, torch.uint16, np.dtype(np.uint8), np.dtype(np.uint16))

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """Reads values of a model's modalities; every result is a batch of one."""

    tokenizers: Tokenizers

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
        wanted = entry.value_shape(1)
        if tuple(image[None].shape) != wanted:
            raise ShapeError(
                f"'{entry.name}' expects float32{list(wanted[1:])} or a picture, "
                f"got {list(image.shape)}"
            )
        return Tokens.given(image[None], length=entry.max_tokens)

    def grid(self, entry: Modality, value: Any) -> Tokens:
        """Token ids, or a raw value that the modality's tokenizer reads."""
        ids = _token_ids(value)
        if ids is None:
            tokenizer = self.tokenizers.vq(entry)
            raw = self._raw(entry, tokenizer, value)
            ids = tokenizer.tokenize_flat(raw[None].to(tokenizer.quant_proj.weight.device)).cpu()[0]
        else:
            _check_ids(entry, ids)
        if ids.shape != (entry.max_tokens,):
            raise ShapeError(
                f"'{entry.name}' has {entry.max_tokens} tokens a sample, got {list(ids.shape)}"
            )
        return Tokens.given(ids[None].long(), length=entry.max_tokens)

    def sequence(self, entry: Modality, value: Any) -> Tokens:
        """A text, a structured value, or token ids."""
        ids = _token_ids(value)
        if ids is None:
            ids = torch.tensor(self.text_ids(entry, value), dtype=torch.int64)
        if ids.numel() > entry.max_tokens:
            raise FourMError(
                f"'{entry.name}' may hold {entry.max_tokens} tokens, got {ids.numel()}; shorten it"
            )
        return Tokens.given(ids[None].long(), length=ids.numel())

    def text_ids(self, entry: Modality, value: Any) -> list[int]:
        """The ids of a text, its end included; a structured value is said in words first."""
        tokenizer = self.tokenizers.text()
        # Fields and numbers stand first in a vocabulary; a format may have just these.
        is_cut = entry.text_format != "text" and (entry.vocab_size or 0) < tokenizer.vocab_size
        if tokenizer.vocab_size != entry.vocab_size and not is_cut:
            raise FourMError(
                f"'{entry.name}' has {entry.vocab_size} words, the text tokenizer "
                f"{tokenizer.vocab_size}: it belongs to another model"
            )
        if isinstance(value, Path):
            value = codec_of(entry).read(read_bytes(value))
        text = value if isinstance(value, str) else _said(entry, value)
        if entry.text_format == "text":
            _refuse_unknown(entry, text, tokenizer)
        ids = [*tokenizer.encode(text), tokenizer.eos]
        if max(ids) >= (entry.vocab_size or 0):
            raise FourMError(
                f"'{entry.name}' says values of the format {entry.text_format!r} alone, got the "
                f"text {text!r:.80}; give a value, or a text of that form"
            )
        return ids

    def features(self, entry: Modality, value: Any) -> Tokens:
        """Embeddings float[L, E] of at most the modality's length, or a text that has them."""
        if entry.raw is not None and isinstance(value, str):
            encoder = sentence_encoder(entry, self.tokenizers.source)
            if encoder is None:
                raise FourMError(self.tokenizers.lacks(entry))
            return vector_of_text(encoder, entry, value)
        array = (
            FeatureCodec(channels=entry.channels).read(_bytes(value)) if _is_file(value) else value
        )
        rows = _finite(entry, _tensor(array).float())
        if rows.ndim != 2 or rows.shape[1] != entry.channels or rows.shape[0] > entry.max_tokens:
            raise ShapeError(
                f"'{entry.name}' expects float[L <= {entry.max_tokens}, {entry.channels}], "
                f"got {list(rows.shape)}"
            )
        return Tokens.given(rows[None], length=rows.shape[0])

    def _raw(self, entry: Modality, tokenizer: VQTokenizer, value: Any) -> Tensor:
        codec = raw_codec(entry, tokenizer)
        if isinstance(codec, FeatureCodec):
            value = codec.read(_bytes(value)) if _is_file(value) else value
            return _finite(entry, _tensor(value).float())
        return self._image(entry, codec, value, _raw_size(entry, tokenizer))

    def _image(
        self, entry: Modality, codec: Codec, value: Any, size: int | tuple[int, int] | None
    ) -> Tensor:
        """A picture cut to its centred square; floats are taken as they are."""
        if isinstance(codec, LabelCodec) and isinstance(value, Tensor | np.ndarray):
            labels = _tensor(value)
            if labels.ndim != 2:
                raise ShapeError(
                    f"'{entry.name}' expects a class map int[H, W], a PNG or a PIL picture of one "
                    f"channel, got {labels.dtype}{list(labels.shape)}"
                )
            return codec.from_numbers(labels, _centered(labels.shape[0], labels.shape[1], size))
        if _is_numbers(value):
            return _normalized(entry, codec, _tensor(value))
        if isinstance(codec, RasterCodec):
            if not _is_file(value):
                raise FourMError(
                    f"'{entry.name}' expects a GeoTIFF tile, its path or its bytes, or "
                    f"standardised floats, got {type(value).__name__}"
                )
            values = codec.read(_bytes(value))
            return codec.cut(values, _centered(values.shape[1], values.shape[2], size))
        picture = as_picture(value, entry.name)
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
    values = _finite(entry, numbers.float())
    if not isinstance(codec, ImageCodec):
        return values
    if said := not_normalized(values, codec.normalization):
        raise ShapeError(f"'{entry.name}' {said}")
    return values


def _finite(entry: Modality, values: Tensor) -> Tensor:
    """The values, if none is NaN or infinite.

    Raises:
        FourMError: one is
    """
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise FourMError(
            f"'{entry.name}' expects finite numbers, got {int(bad.sum())} that are NaN or infinite "
            f"of {bad.numel()}; replace them or leave the item out"
        )
    return values


def raw_codec(entry: Modality, tokenizer: VQTokenizer) -> Codec:
    """How the raw values of a grid are read and shown: its raw modality's way, if it names one."""
    if entry.raw is not None and entry.raw in MODALITIES:
        codec = codec_of(MODALITIES[entry.raw])
        reads_imagenet = tokenizer.config.undo_std and isinstance(codec, ImageCodec)
        return ImageCodec(normalization="imagenet") if reads_imagenet else codec
    config = tokenizer.config
    if config.n_labels is not None:
        return LabelCodec(num_labels=config.n_labels, offset=0)
    if config.n_channels in (1, 3):
        return ImageCodec(channels=config.n_channels)
    return FeatureCodec(channels=config.n_channels)


def as_picture(value: Any, name: str) -> Any:
    """An upright PIL picture from whatever `modalities.pictures.as_picture` reads.

    Raises:
        ShapeError: an array of another shape
        FourMError: anything else
    """
    from PIL import Image

    if not (isinstance(value, (str, Path, bytes, Image.Image)) or _is_pixels(value)):
        raise FourMError(
            f"'{name}' expects a path, bytes, a PIL picture or uint8[H, W, C], got "
            f"{type(value).__name__}"
        )
    try:
        return pictures.as_picture(value)
    except FourMError as error:
        raise type(error)(f"'{name}': {error}") from error


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


def _token_ids(value: Any) -> Tensor | None:
    """Integers as ids; None for anything else. uint8 is a picture."""
    if isinstance(value, np.ndarray) and value.dtype != np.uint8 and value.dtype.kind in "iu":
        return torch.from_numpy(value.astype(np.int64)) if value.ndim == 1 else None
    if isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point():
        return value
    is_list = isinstance(value, (list, tuple)) and bool(value)
    return torch.tensor(value) if is_list and all(type(v) is int for v in value) else None


def is_token_ids(value: Any) -> bool:
    """Whether a value is read as token ids, for which no tokenizer is needed."""
    return _token_ids(value) is not None


def _is_pixels(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.dtype in _PIXELS


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.dtype not in _PIXELS


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, Path, bytes))


def _bytes(value: str | Path | bytes) -> bytes:
    return value if isinstance(value, bytes) else read_bytes(Path(value).expanduser())


def _tensor(value: Any) -> Tensor:
    if isinstance(value, list | tuple):  # numbers in rows
        value = np.array(value)
    return as_tensor(value)


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
    rows = [(like.hidden() if p is None else p).padded(length) for p in parts]
    return Tokens(
        torch.cat([r.value for r in rows]),
        inputs=torch.cat([r.inputs for r in rows]),
        targets=torch.cat([r.targets for r in rows]),
    )


def read_entries(
    items: Iterable[Mapping[str, Any]], inputs: Mapping[str, Modality]
) -> list[Modality]:
    """The modalities whose values a tokenizer must read: grids and texts that are no token ids."""
    keys = {key for item in items for key, value in item.items() if not is_token_ids(value)}
    entries = (inputs[find_modality(key, inputs, role="input")] for key in sorted(keys))
    return [m for m in entries if m.kind in ("grid", "sequence")]


def vq_entries(entries: Iterable[Modality], *, shown: bool) -> list[Modality]:
    """Those of them with a VQ tokenizer; what stands inside a text is decoded where it is shown."""
    return [m for m in entries if m.kind == "grid" or (shown and m.text_format in INNER)]


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
