"""Values of AION-1's codecs as people have them, and as they look at them: one row a codec.

A number is a number, or its text; what has parts (an image with its bands, a spectrum, a catalog)
is an .npz file with these arrays, a mapping, or the codec's own dataclass. Every value is one item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.forks import SURVEYS
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.plain_values import finite
from fourm_lite.reading.arrays import open_npz, read_npy_file
from fourm_lite.tokenization.aion.images import ImageCodec, ScalarFieldCodec, SkyImage
from fourm_lite.tokenization.aion.scalars import FIELDS, Catalog, CatalogCodec, ScalarCodec
from fourm_lite.tokenization.aion.spectra import Spectrum, SpectrumCodec
from fourm_lite.tokenization.vq.inputs import Tokenizer, as_tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Form:
    """How the values of a codec are read and shown.

    Args:
        read: a person's value -> what the codec takes, a batch of one
        give: what the codec gives for one item -> the value, and its picture or text
        options: of decoding, by what tokens do not tell
    """

    read: Callable[[Modality, Any], Any]
    give: Callable[[Any], tuple[Any, Any]]
    options: Callable[[Modality], dict[str, Any]] = lambda entry: {}


def tokens_of(codec: Tokenizer[Any], entry: Modality, value: Any) -> Tensor:
    """Tokens int64[L] of one value.

    Raises:
        FourMError: it is no value of this modality; the message says what is expected
    """
    try:
        ids = codec.tokenize(_form(codec).read(entry, value))
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, FourMError):
            raise
        raise FourMError(f"'{entry.name}' cannot read {value!r:.80}: {error}") from error
    return ids.reshape(-1)


def value_of_tokens(codec: Tokenizer[Any], entry: Modality, tokens: Tensor) -> tuple[Any, Any]:
    """The value of tokens int64[L], and what a person looks at: a picture or a text."""
    form = _form(codec)
    return form.give(codec.detokenize(tokens[None], **form.options(entry)))


def _form(codec: Tokenizer[Any]) -> Form:
    return next(form for kind, form in FORMS.items() if isinstance(codec, kind))


# Reading -------------------------------------------------------------------------------------


def _parts(entry: Modality, value: Any, names: Sequence[str]) -> dict[str, Any]:
    """The parts of a value by name: of a mapping, a dataclass or an .npz file.

    Raises:
        FourMError: it is nothing of these, or a needed part (the first of `names`) is missing
    """
    if isinstance(value, str | Path) and str(value).endswith(".npz"):
        with open_npz(Path(value).expanduser()) as arrays:
            value = {name: arrays[name] for name in arrays if name in names}
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if not isinstance(value, Mapping) or names[0] not in value:
        had = sorted(value) if isinstance(value, Mapping) else f"{value!r:.80}"
        raise FourMError(
            f"'{entry.name}' expects an .npz file or a mapping with {', '.join(names)}, got {had}"
        )
    return dict(value)


def _numbers(value: Any) -> Tensor:
    if isinstance(value, str | Path) and str(value).endswith(".npy"):
        value = read_npy_file(Path(value).expanduser())
    if isinstance(value, str):
        value = float(value)
    if not isinstance(value, Tensor):
        value = as_tensor(np.asarray(value))
    found: Tensor = value.float()
    return found


def _row(value: Any, ndim: int) -> Tensor:
    """Numbers as a batch of one item of so many dimensions."""
    numbers = _numbers(value)
    return numbers[None] if numbers.ndim == ndim else numbers


def _read_scalar(entry: Modality, value: Any) -> Tensor:
    numbers = _numbers(value).reshape(1, -1)
    if numbers.shape[1] != entry.max_tokens:
        raise ShapeError(f"'{entry.name}' is {entry.max_tokens} number(s), got {numbers.shape[1]}")
    return finite(entry, numbers[:, 0] if entry.max_tokens == 1 else numbers)


def _read_image(entry: Modality, value: Any) -> SkyImage:
    if isinstance(value, Tensor | np.ndarray):
        value = {"flux": value}
    parts = _parts(entry, value, ("flux", "bands"))
    bands = parts.get("bands", SURVEYS.get(entry.name, ()))
    return SkyImage(finite(entry, _row(parts["flux"], 3)), tuple(str(band) for band in bands))


def _read_spectrum(entry: Modality, value: Any) -> Spectrum:
    parts = _parts(entry, value, ("flux", "ivar", "mask", "wavelength"))
    if parts.get("wavelength") is None:
        raise FourMError(f"'{entry.name}' needs the wavelength of each flux, rising")
    flux, wavelength = (_row(parts[name], 1) for name in ("flux", "wavelength"))
    ivar = torch.ones_like(flux) if parts.get("ivar") is None else _row(parts["ivar"], 1)
    mask = torch.zeros_like(flux) if parts.get("mask") is None else _row(parts["mask"], 1)
    return Spectrum(flux, ivar, mask.bool(), wavelength)


def _read_catalog(entry: Modality, value: Any) -> Catalog:
    if isinstance(value, list):  # one object after the other
        value = {name: [one[name] for one in value] for name in FIELDS}
    parts = _parts(entry, value, FIELDS)
    return Catalog(*(_row(parts[name], 1) for name in FIELDS))


def _read_field(entry: Modality, value: Any) -> Tensor:
    if isinstance(value, str | Path) and not str(value).endswith(".npy"):
        value = _parts(entry, value, ("field",))["field"]
    return finite(entry, _row(value, 2))


# Showing -------------------------------------------------------------------------------------


def _give_scalar(found: Tensor) -> tuple[Any, str]:
    numbers = found.reshape(-1).tolist()
    value = numbers[0] if len(numbers) == 1 else numbers
    return value, ", ".join(f"{number:.6g}" for number in numbers)


def _give_image(found: SkyImage) -> tuple[Any, Image]:
    flux = found.flux[0].numpy()
    shown = flux[[2, 1, 0]] if len(flux) > 2 else flux[:1]  # from long to short waves
    return {"flux": flux, "bands": list(found.bands)}, _grey_or_colours(np.arcsinh(shown / 0.01))


def _give_field(found: Tensor) -> tuple[Any, Image]:
    return found[0].numpy(), _grey_or_colours(found.numpy(), 0.0, 1.0)


def _give_spectrum(found: Spectrum) -> tuple[Any, Image]:
    value = {f.name: getattr(found, f.name)[0].numpy() for f in fields(found)}
    return value, _curve(value["flux"])


def _give_catalog(found: Catalog) -> tuple[Any, str]:
    columns = [getattr(found, name)[0].tolist() for name in FIELDS]
    objects = [dict(zip(FIELDS, row, strict=True)) for row in zip(*columns, strict=True)]
    lines = [" ".join(f"{name}={one[name]:.4g}" for name in FIELDS) for one in objects]
    return objects, "\n".join(lines) or "(no objects)"


def _grey_or_colours(
    maps: npt.NDArray[Any], low: float | None = None, high: float | None = None
) -> Image:
    """Maps float[1 or 3, H, W] as a picture, by default from their 1st to their 99th percentile."""
    from PIL import Image

    bottom = float(np.quantile(maps, 0.01)) if low is None else low
    top = float(np.quantile(maps, 0.99)) if high is None else high
    scaled = np.clip((maps - bottom) / max(top - bottom, 1e-9), 0, 1)
    pixels = (scaled * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def _curve(flux: npt.NDArray[Any], width: int = 512, height: int = 128) -> Image:
    """A line of numbers, from their 1st to their 99th percentile."""
    from PIL import Image, ImageDraw

    low, high = np.quantile(flux, (0.01, 0.99))
    up = np.clip((flux - low) / max(high - low, 1e-9), 0, 1)
    across = np.linspace(0, width - 1, len(flux))
    image = Image.new("L", (width, height), 255)
    line = np.stack([across, (1 - up) * (height - 1)], axis=1)
    ImageDraw.Draw(image).line([tuple(p) for p in line.tolist()], fill=0)
    return image


def _bands(entry: Modality) -> dict[str, Any]:
    return {"bands": SURVEYS.get(entry.name, ())}


FORMS: Mapping[type, Form] = {
    ScalarCodec: Form(_read_scalar, _give_scalar),
    ImageCodec: Form(_read_image, _give_image, _bands),
    SpectrumCodec: Form(_read_spectrum, _give_spectrum),
    ScalarFieldCodec: Form(_read_field, _give_field),
    CatalogCodec: Form(_read_catalog, _give_catalog),
}
