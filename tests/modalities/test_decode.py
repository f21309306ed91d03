"""One way to open a picture, one meaning of each type of number."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.codecs import Crop, DepthCodec, ImageCodec
from fourm_lite.modalities.pictures import as_picture, decode, eight_bits, open_rgb


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def colours():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def test_every_form_of_one_picture_gives_the_same_pixels(colours, tmp_path):
    picture = Image.fromarray(colours)
    picture.save(tmp_path / "photo.png")
    forms = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        encoded(picture),
        encoded(picture, "TIFF"),
        picture,
        picture.convert("RGBA"),
        colours,
        colours.astype(np.uint16) * 257,
        colours / 255,
        (colours / 255).astype(np.float32),
        colours.transpose(2, 0, 1),
        colours[:, ::-1].copy()[:, ::-1],
        torch.from_numpy(colours).permute(2, 0, 1),
        torch.from_numpy(colours),
    ]

    for form in forms:
        assert np.array_equal(np.asarray(decode(form)), colours)


def test_a_file_that_is_no_picture_is_named_plainly_with_one_expectation(tmp_path):
    place = tmp_path / "tok"
    place.write_bytes(b"no photo")

    with pytest.raises(FourMError) as caught:
        decode(place)

    said = str(caught.value)
    assert said.startswith(f"cannot read the picture '{place}': expected a picture (JPEG")
    assert said.count("expected") == 1
    assert "Path(" not in said


def test_what_is_no_picture_at_all_is_told_what_is():
    with pytest.raises(FourMError, match="give a path, bytes, a PIL picture, an array"):
        decode(5)


def test_what_is_transparent_is_white_in_every_form(colours):
    alpha = np.zeros((6, 9), np.uint8)
    clear = Image.fromarray(np.dstack([colours, alpha]))
    palette = Image.fromarray(colours).quantize(8)
    premultiplied = Image.merge("LA", (Image.new("L", (9, 6), 7), Image.new("L", (9, 6), 0)))
    index = palette.getpixel((0, 0))
    deep = Image.fromarray(np.full((6, 9), 5000, np.uint16))
    forms = [
        clear,
        np.asarray(clear),
        encoded(clear),
        encoded(clear, "WEBP", lossless=True, exact=True),
        premultiplied,
        premultiplied.convert("La"),
        encoded(deep, transparency=5000),
    ]

    for form in forms:
        assert np.asarray(decode(form)).min() == 255
    assert decode(encoded(palette, transparency=index)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32, np.float64, ">f4", ">u2"])
def test_sixteen_bits_become_eight_and_are_not_cut_off(kind):
    numbers = np.full((2, 2), 100 * 257).astype(kind)

    assert decode(numbers).getpixel((0, 0)) == (100, 100, 100)
    if numbers.dtype.isnative and numbers.dtype != np.float64:
        assert decode(Image.fromarray(numbers)).getpixel((0, 0)) == (100, 100, 100)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize("most", [2, 255, 1023, 4095])
def test_a_range_that_is_not_said_is_refused_and_never_black(kind, most):
    ramp = np.tile(np.linspace(0, most, 64).astype(kind), (8, 1))
    file = encoded(Image.fromarray(ramp), "TIFF")

    for door in (lambda: open_rgb(file), lambda: decode(ramp), lambda: decode(torch.tensor(ramp))):
        with pytest.raises(FourMError, match="range is not known"):
            door()


def test_a_floating_point_picture_within_0_and_1_is_dark_to_bright():
    ramp = np.tile(np.linspace(0, 1, 256).astype(np.float32), (4, 1))

    for form in (ramp, encoded(Image.fromarray(ramp), "TIFF"), Image.fromarray(ramp)):
        assert np.array_equal(np.asarray(decode(form))[0, :, 0], np.arange(256))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 7e4])
def test_numbers_that_are_no_pixels_are_refused(bad):
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = bad

    with pytest.raises(ShapeError, match="pixels are"):
        decode(values)
    with pytest.raises(FourMError):
        decode(Image.fromarray(values))


def test_half_precision_is_read_as_floats():
    grey = torch.full((3, 4, 4), 0.5)

    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert decode(grey.to(kind)).getpixel((0, 0)) == (128, 128, 128)


def test_black_and_truth_have_one_meaning():
    assert eight_bits(np.zeros((2, 2), np.int64)).max() == 0
    assert eight_bits(np.array([[True, False]])).tolist() == [[255, 0]]


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), (7, 6, 5), (0, 4, 3)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=r"\[H, W, 3\]"):
        as_picture(np.zeros(shape, np.uint8))


def test_sixteen_bit_arrays_keep_their_depth():
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000

    assert np.array_equal(np.asarray(as_picture(deep)), deep)


def test_depth_is_resized_as_pillow_resizes_its_file():
    deep = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    picture = Image.fromarray(deep)
    own = np.asarray(picture.crop((5, 0, 45, 40)).resize((24, 24))).astype(np.float32)
    crop = Crop.center(40, 50, 24)

    depth = DepthCodec(standardize=False).read(encoded(picture), crop)[0].numpy() * 65535
    grey = ImageCodec(channels=1, normalization="none", scale=1 / 65535)

    assert np.abs(depth - own).max() < 0.01
    assert np.abs(grey.read(encoded(picture), crop)[0].numpy() * 65535 - own).max() < 0.01
