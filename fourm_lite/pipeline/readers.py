"""From what a person has (a path, a picture, an array, a text) to tokens of one modality.

A picture is cut to its centred square and resized to what the model reads; bytes (uint8) are one
too. A row of integers is token ids, a map of them classes; floats are values that the model or the
tokenizer reads as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.batch import Tokens
from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.array_codecs import FeatureCodec, LabelCodec
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.codec_types import Codec, Crop
from fourm_lite.modalities.codecs import codec_of
from fourm_lite.modalities.pictures import open_picture, upright
from fourm_lite.modalities.pixel_codecs import ImageCodec
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.tokenizers import Tokenizers
from fourm_lite.tokenization.sequences import FORMATS
from fourm_lite.tokenization.vqvae import VQTokenizer


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
        image = self._image(entry, codec_of(entry), value)
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
            value = codec_of(entry).read(value.read_bytes())
        text = value if isinstance(value, str) else _said(entry, value)
        ids = [*tokenizer.encode(text), tokenizer.eos]
        if max(ids) >= (entry.vocab_size or 0):
            raise FourMError(
                f"'{entry.name}' says values of the format {entry.text_format!r} alone, got the "
                f"text {text!r:.80}; give a value, or a text of that form"
            )
        return ids

    def features(self, entry: Modality, value: Any) -> Tokens:
        """Embeddings float[L, E] of at most the modality's length."""
        array = (
            FeatureCodec(channels=entry.channels).read(_bytes(value)) if _is_file(value) else value
        )
        rows = _tensor(array).float()
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
            return _tensor(value).float()
        return self._image(entry, codec, value)

    def _image(self, entry: Modality, codec: Codec, value: Any) -> Tensor:
        """A picture cut to its centred square; numbers that are no bytes are taken as they are."""
        if isinstance(codec, LabelCodec) and (isinstance(value, Tensor) or _is_numbers(value)):
            return _tensor(value)
        if _is_numbers(value):
            numbers = _tensor(value)
            if not numbers.is_floating_point():
                raise ShapeError(
                    f"'{entry.name}' expects normalised floats or a uint8 picture, got "
                    f"{numbers.dtype}{list(numbers.shape)}; convert it to uint8 if it holds 0..255"
                )
            return numbers.float()
        picture = as_picture(value, entry.name)
        size = entry.image_size
        crop = Crop.center(picture.height, picture.width, size) if size else None
        read = getattr(codec, "from_picture", None)
        if read is None:
            raise FourMError(
                f"'{entry.name}' is not read from pictures, got {type(value).__name__}"
            )
        return read(picture, crop)


def raw_codec(entry: Modality, tokenizer: VQTokenizer) -> Codec:
    """How the raw values of a grid are read and shown: its raw modality's way, if it names one."""
    if entry.raw is not None and entry.raw in MODALITIES:
        codec = codec_of(MODALITIES[entry.raw])
        reads_imagenet = tokenizer.config.undo_std and isinstance(codec, ImageCodec)
        return ImageCodec(normalization="imagenet") if reads_imagenet else codec
    config = tokenizer.config
    if config.n_labels is not None:
        return LabelCodec(num_labels=config.n_labels)
    if config.n_channels in (1, 3):
        return ImageCodec(channels=config.n_channels)
    return FeatureCodec(channels=config.n_channels)


def as_picture(value: Any, name: str) -> Any:
    """An upright PIL picture from a path, bytes, a PIL picture, an array or a tensor.

    Shapes:
        value: uint8[H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels; where both fit, an array
            is [H, W, C] and a tensor [C, H, W]
    Raises:
        ShapeError: uint8 of another shape
        FourMError: anything else
    """
    from PIL import Image

    if isinstance(value, Image.Image):
        return upright(value)
    if isinstance(value, (str, Path, bytes)):
        return open_picture(_bytes(value))
    if _is_pixels(value):
        return Image.fromarray(_channels_last(value, name))
    raise FourMError(
        f"'{name}' expects a path, bytes, a PIL picture or uint8[H, W, C], got "
        f"{type(value).__name__}"
    )


def _channels_last(value: Tensor | npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[np.uint8] = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
    if array.ndim == 2 and array.size:
        return array
    usual = 0 if isinstance(value, Tensor) else 2
    places = [p for p in (usual, 2 - usual) if array.ndim == 3 and array.shape[p] in (1, 3, 4)]
    if not places or not array.size:
        raise ShapeError(
            f"'{name}' expects one picture uint8[H, W, C] or [C, H, W] with 1, 3 or 4 channels, "
            f"got {list(array.shape)}; give several as several items"
        )
    pixels = np.ascontiguousarray(np.moveaxis(array, places[0], 2))
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


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
    if isinstance(value, Tensor):
        return value.dtype == torch.uint8
    return isinstance(value, np.ndarray) and value.dtype == np.uint8


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and not _is_pixels(value)


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, Path, bytes))


def _bytes(value: str | Path | bytes) -> bytes:
    return value if isinstance(value, bytes) else Path(value).expanduser().read_bytes()


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise FourMError(f"expected an array or a tensor, got {type(value).__name__}") from error


_READERS: Mapping[str, Callable[[Reader, Modality, Any], Tokens]] = {
    "pixels": Reader.pixels,
    "grid": Reader.grid,
    "sequence": Reader.sequence,
    "features": Reader.features,
}
