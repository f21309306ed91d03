import io

import numpy as np
import pytest
from PIL import Image

from fourm_lite.errors import FourMError
from fourm_lite.modalities.pictures import open_picture, open_rgb, png, thumbnail


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "CMYK", "YCbCr"]
KIND = {"I": "TIFF", "CMYK": "JPEG", "YCbCr": "JPEG"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    image = Image.new(mode, (5, 3))

    opened = open_rgb(encoded(image, KIND.get(mode, "PNG")))

    assert (opened.mode, opened.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_sixteen_bits_have_the_brightness_of_eight(grey):
    deep = Image.fromarray(np.full((2, 2), grey * 257, np.uint16))

    opened = open_rgb(encoded(deep, "PNG"))

    assert opened.getpixel((0, 0)) == (grey, grey, grey)


def test_an_exif_rotated_photo_is_upright():
    image = Image.new("RGB", (4, 2), "red")
    image.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6

    opened = open_rgb(encoded(image, "PNG", exif=exif.tobytes()))

    assert opened.size == (2, 4)
    assert opened.getpixel((1, 0)) == (0, 0, 255)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])

    assert open_rgb(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    opened = open_rgb(encoded(palette, "PNG", transparency=0))
    assert opened.getpixel((0, 0)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]

    opened = open_rgb(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))

    assert opened.getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"hello, world", "that are none"),
        (b"\xff\xd8\xff\xe0", "picture"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(data, reason):
    with pytest.raises(FourMError, match=reason):
        open_rgb(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_a_picture_cut_short_is_refused_and_never_another_error(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)

    for share in (0.1, 0.5, 0.9):
        with pytest.raises(FourMError):
            open_rgb(data[: int(len(data) * share)])


def test_too_many_pixels_are_refused_before_they_are_decoded():
    data = encoded(Image.new("1", (200, 100)), "PNG")

    with pytest.raises(FourMError, match="at most 19999 pixels, got 200 x 100"):
        open_rgb(data, max_pixels=19_999)
    assert open_rgb(data, max_pixels=20_000).size == (200, 100)


def test_a_thumbnail_fits_its_side_and_leaves_the_picture():
    image = Image.new("RGB", (100, 50))

    assert thumbnail(image, 20).size == (20, 10)
    assert image.size == (100, 50)


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_a_picture_too_thin_for_any_network_is_refused(size):
    with pytest.raises(FourMError, match="as long as wide"):
        open_picture(png(Image.new("RGB", size)))


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading")])
def test_short_memory_is_no_broken_picture(monkeypatch, error):
    def short(*_):
        raise error

    data = png(Image.new("RGB", (8, 8)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", short)

    with pytest.raises(MemoryError):
        open_picture(data)
