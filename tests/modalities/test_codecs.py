import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.codecs import (
    BoxCodec,
    Codec,
    Crop,
    DepthCodec,
    FeatureCodec,
    ImageCodec,
    LabelCodec,
    MaskCodec,
    MetadataCodec,
    NormalCodec,
    PaletteCodec,
    PoseCodec,
    SamCodec,
    TextCodec,
    TokenCodec,
    class_colors,
    codec_of,
    denormalize,
    legend_of,
    normalize,
    open_picture,
    picture_size,
    standardize_depth,
)
from fourm_lite.modalities.legend import drawable, font, wrapped
from fourm_lite.modalities.values import Box, Person, PointQuery, Segment

RED = (250, 10, 20)


def file_of(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=form, **options)
    return stream.getvalue()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(data: bytes, crop: Crop | None = None) -> torch.Tensor:
    return (ImageCodec(normalization="none").read(data, crop) * 255).round()


def color_of(data: bytes) -> list[int]:
    """The colour of the pixel in the middle."""
    image = pixels(data)
    return image[:, image.shape[1] // 2, image.shape[2] // 2].int().tolist()


# --- pictures as they come


def test_pixels_are_the_file_scaled_and_shifted():
    array = noise(0, 5, 7, 3)

    image = ImageCodec().read(file_of(Image.fromarray(array)))

    want = torch.from_numpy(array).permute(2, 0, 1).float() / 255 * 2 - 1
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, want)


@pytest.mark.parametrize("name", ["inception", "imagenet", "none"])
def test_denormalizing_undoes_normalizing(name):
    image = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(denormalize(normalize(image, name), name), image)


@pytest.mark.parametrize(
    ("orientation", "where"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0))]
)
def test_exif_rotation_is_applied(orientation, where):
    picture = Image.new("RGB", (16, 8))
    picture.paste(RED, (0, 0, 8, 4))  # marks the first quarter of the stored picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(picture, exif=exif)

    image = pixels(data)

    height, width = image.shape[1:]
    assert (height, width) == picture_size(data) == ((16, 8) if orientation >= 5 else (8, 16))
    row, column = where
    corner = image[0, (height - 1) * row, (width - 1) * column]
    assert corner == RED[0]
    assert (image[0] == RED[0]).sum() == 32


def test_broken_exif_does_not_lose_the_picture():
    data = file_of(Image.new("RGB", (4, 4), RED), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")

    assert color_of(data) == list(RED)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
def test_every_mode_becomes_three_channels(mode):
    plain = Image.new("RGB", (6, 4), (255, 255, 255))
    picture = (
        Image.fromarray(np.full((4, 6), 65535, np.uint16 if mode == "I;16" else np.int32))
        if mode in ("I;16", "I")
        else plain.convert(mode)
    )

    image = pixels(file_of(picture, "TIFF" if mode == "I" else "PNG"))

    assert image.shape == (3, 4, 6)
    assert (image == 255).all()


def test_sixteen_bits_keep_their_brightness():
    data = file_of(Image.fromarray(np.full((4, 4), 32896, np.uint16)))

    assert color_of(data) == [128, 128, 128]


def test_cmyk_is_converted():
    data = file_of(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95)

    assert np.allclose(color_of(data), RED, atol=8)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparency_shows_the_background(form):
    clear = file_of(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), form)

    assert color_of(clear) == [255, 255, 255]
    black = ImageCodec(normalization="none", background=(0, 0, 0)).read(clear)
    assert black.max() == 0


def test_a_transparent_palette_colour_shows_the_background():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, *RED])

    assert color_of(file_of(picture)) == list(RED)
    assert color_of(file_of(picture, transparency=1)) == [255, 255, 255]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 0, 255))]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert np.allclose(color_of(data), RED, atol=4)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares a huge size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [9_500, 30_000, 2_000_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    with pytest.raises(FourMError, match=r"at most \d+ pixels"):
        open_picture(bomb(side, side))


def test_the_largest_picture_is_an_argument():
    data = file_of(Image.new("RGB", (20, 20)))

    with pytest.raises(FourMError, match="20 x 20"):
        ImageCodec(max_pixels=399).read(data)
    assert ImageCodec(max_pixels=400).read(data).shape == (3, 20, 20)


GOOD = file_of(Image.fromarray(noise(1, 40, 40, 3)), "JPEG")
BROKEN = {
    "empty": b"",
    "text": b"this is no picture",
    "cut JPEG": GOOD[: len(GOOD) // 2],
    "cut PNG": file_of(Image.fromarray(noise(1, 40, 40, 3)))[:200],
    "header alone": GOOD[:20],
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_a_clear_error(name):
    with pytest.raises(FourMError, match=r"picture"):
        ImageCodec().read(BROKEN[name])


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_one_wrong_byte_gives_a_picture_or_our_error(place, byte):
    data = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]

    with contextlib.suppress(FourMError):
        assert ImageCodec().read(data).ndim == 3


# --- crops


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 8), st.integers(0, 8), st.booleans())
@settings(max_examples=40)
def test_a_crop_cuts_and_mirrors(height, width, top, left, hflip):
    array = noise(2, 20, 20, 3)
    crop = Crop(top=top, left=left, height=height, width=width, hflip=hflip)

    image = pixels(file_of(Image.fromarray(array)), crop)

    want = torch.from_numpy(array[top : top + height, left : left + width]).permute(2, 0, 1)
    assert torch.equal(image, (want.flip(-1) if hflip else want).float())


@pytest.mark.parametrize("size", [8, (6, 10)])
def test_a_crop_resizes_to_height_and_width(size):
    crop = Crop(top=0, left=0, height=20, width=20, size=size)

    image = pixels(file_of(Image.fromarray(noise(3, 20, 20, 3))), crop)

    assert tuple(image.shape[1:]) == crop.output_size


def test_a_crop_beyond_the_picture_is_an_error():
    data = file_of(Image.new("RGB", (10, 10)))

    with pytest.raises(ShapeError, match="leaves the picture"):
        pixels(data, Crop(top=5, left=0, height=6, width=10))
    with pytest.raises(ShapeError, match="sides >= 1"):
        Crop(top=0, left=0, height=0, width=10)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([None, 8, (3, 5), (16, 9)]))
def test_the_centre_crop_is_centred_and_inside(height, width, size):
    crop = Crop.center(height, width, size)

    assert abs(2 * crop.top + crop.height - height) <= 1
    assert abs(2 * crop.left + crop.width - width) <= 1
    assert crop.height == height or crop.width == width


# --- depth, normals, labels, masks


def depth_file(seed: int = 0, shape: tuple[int, int] = (12, 14)) -> bytes:
    plane = np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)
    return file_of(Image.fromarray(plane))


def test_plain_depth_comes_back_exactly():
    codec = DepthCodec(standardize=False)
    depth = codec.read(depth_file())

    assert codec.write(depth) == codec.write(codec.read(codec.write(depth)))
    assert torch.equal(codec.read(codec.write(depth)), depth)


def test_standardised_depth_comes_back():
    codec = DepthCodec()
    depth = codec.read(depth_file())

    torch.testing.assert_close(codec.read(codec.write(depth)), depth, atol=1e-3, rtol=0)


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_standardising_forgets_scale_and_shift(scale, shift):
    depth = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    got = standardize_depth(depth * scale + shift, epsilon=0.0)

    torch.testing.assert_close(got, standardize_depth(depth, epsilon=0.0))


def test_outliers_do_not_move_the_depth_of_the_rest():
    depth = torch.linspace(0, 1, 100).view(1, 10, 10)
    wild = depth.clone()
    wild[0, 9, 9] = 1e6

    torch.testing.assert_close(standardize_depth(wild)[0, :9], standardize_depth(depth)[0, :9])


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2)])
def test_tiny_and_flat_depth_stays_finite(shape):
    flat = file_of(Image.fromarray(np.full(shape, 700, np.uint16)))

    assert torch.isfinite(DepthCodec().read(flat)).all()
    assert torch.isfinite(DepthCodec().read(depth_file(0, shape))).all()


def test_eight_bit_depth_spans_the_same_range():
    data = file_of(Image.new("L", (4, 4), 255))

    assert (DepthCodec(standardize=False).read(data) == 1).all()


def test_a_mirrored_normal_points_the_other_way():
    data = file_of(Image.fromarray(noise(4, 6, 8, 3)))
    crop = Crop(top=0, left=0, height=6, width=8, hflip=True)

    plain, mirrored = NormalCodec().read(data), NormalCodec().read(data, crop)

    torch.testing.assert_close(mirrored[0], -plain[0].flip(-1))
    torch.testing.assert_close(mirrored[1:], plain[1:].flip(-1))


def test_labels_come_back_and_void_is_class_zero():
    codec = LabelCodec(num_labels=134)
    stored = np.array([[255, 0, 132]], dtype=np.uint8)

    labels = codec.read(file_of(Image.fromarray(stored)))

    assert labels.tolist() == [[0, 1, 133]]
    assert torch.equal(codec.read(codec.write(labels)), labels)


def test_the_numbers_of_a_palette_are_the_classes():
    picture = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8))
    picture.putpalette([9, 9, 9] * 256)

    assert LabelCodec(offset=0).read(file_of(picture)).tolist() == [[0, 1], [2, 3]]


def test_resized_labels_hold_no_new_class():
    data = file_of(Image.fromarray(np.array([[0, 100]] * 2, dtype=np.uint8)))

    labels = LabelCodec().read(data, Crop(top=0, left=0, height=2, width=2, size=9))

    assert set(labels.flatten().tolist()) == {1, 101}


def test_labels_beyond_the_classes_and_colours_are_errors():
    with pytest.raises(FourMError, match=r"classes 0\.\.9"):
        LabelCodec(num_labels=10).read(file_of(Image.new("L", (2, 2), 10)))
    with pytest.raises(FourMError, match="not colours"):
        LabelCodec().read(file_of(Image.new("RGB", (2, 2))))


def test_class_colours_differ():
    colors = class_colors(134)

    assert colors.shape == (134, 3)
    assert len({tuple(c) for c in colors.tolist()}) == 134
    assert min(colors[0]) > 200  # "none" is light


def test_masks_are_zero_or_one_and_come_back():
    codec = MaskCodec()
    mask = codec.read(file_of(Image.fromarray(noise(5, 8, 8))))

    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(codec.read(codec.write(mask)), mask)


# --- numbers


@pytest.mark.parametrize("shape", [(4, 3, 5), (7, 4), (4,)])
def test_features_come_back(shape):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codec = FeatureCodec(channels=4)

    assert torch.equal(codec.read(codec.write(value)), value)


@given(st.lists(st.integers(0, 16383), max_size=30))
def test_tokens_come_back_as_int64(ids):
    codec = TokenCodec(vocab_size=16384)

    read = codec.read(codec.write(torch.tensor([ids])))

    assert read.dtype == torch.int64
    assert read.tolist() == [ids]


def npy(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def declaring(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\0" * 16


BAD_NPY = {
    "empty": b"",
    "no array": b"hello",
    "pickle": npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "cut off": npy(np.zeros((4, 4), np.float32))[:-1],
    "too long": npy(np.zeros((4, 4), np.float32)) + b"\0",
    "a billion elements": declaring("(1000000000,)"),
    "negative": declaring("(-4,)"),
    "code": declaring("__import__('os')"),
}


@pytest.mark.parametrize("codec", [FeatureCodec(), TokenCodec()])
@pytest.mark.parametrize("name", BAD_NPY)
def test_a_bad_array_file_is_a_clear_error(codec, name):
    with pytest.raises(FourMError, match=r"\.npy"):
        codec.read(BAD_NPY[name])


def test_wrong_numbers_are_errors():
    with pytest.raises(FourMError, match="NaN"):
        FeatureCodec().read(npy(np.array([np.nan])))
    with pytest.raises(FourMError, match="whole numbers"):
        TokenCodec().read(npy(np.zeros(3)))
    with pytest.raises(FourMError, match=r"0\.\.15"):
        TokenCodec(vocab_size=16).read(npy(np.array([16])))
    with pytest.raises(ShapeError, match=r"\[8, H, W\]"):
        FeatureCodec(channels=8).read(npy(np.zeros((3, 4, 4))))


def test_a_fortran_ordered_file_reads_the_same():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)

    assert FeatureCodec().read(npy(np.asfortranarray(array))).tolist() == array.tolist()


# --- structured values

VALUES = {
    "text": (TextCodec(), "a dog, 中文"),
    "boxes": (BoxCodec(), (Box(0.1, 0.2, 0.3, 0.4, "wine glass", 0.7),)),
    "metadata": (MetadataCodec(), {"brightness": 12.5, "n_humans": 3}),
    "palette": (PaletteCodec(), ((1, 2, 3), (4, 5, 6))),
    "people": (PoseCodec(), (Person(box=(0.1, 0.1, 0.5, 0.5), pose=(1,) * 8), Person())),
    "points": (SamCodec(), (PointQuery(3, 4, (Segment((1, 2, 3, 4), (7,) * 16),)),)),
}


@pytest.mark.parametrize("name", VALUES)
def test_structured_values_come_back_from_their_file(name):
    codec, value = VALUES[name]

    assert codec.read(codec.write(value)) == value
    assert isinstance(codec.picture(value), (str, Image.Image))


@pytest.mark.parametrize("name", [n for n in VALUES if n != "text"])
@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"[", b"7", b'[{"boxes": "no"}]', b"[" * 100_000, b'{"a": "b"}']
)
def test_a_bad_json_file_is_a_clear_error(name, data):
    codec, _ = VALUES[name]

    with pytest.raises(FourMError, match="expected"):
        codec.read(data)


def test_boxes_follow_the_crop():
    codec = BoxCodec()
    data = codec.write([Box(0.5, 0.0, 1.0, 1.0, "dog")])
    crop = Crop(top=0, left=50, height=100, width=50, hflip=True, whole=(100, 100))

    assert codec.read(data, crop) == (Box(0.0, 0.0, 1.0, 1.0, "dog"),)


def test_a_flat_palette_is_read_too():
    assert PaletteCodec().read(b"[1, 2, 3, 4, 5, 6]") == ((1, 2, 3), (4, 5, 6))


def test_boxes_turned_inside_out_are_drawn():
    picture = BoxCodec().picture([Box(0.9, 0.9, 0.1, -3.0, "中")])

    assert picture.getextrema() != ((255, 255),) * 3


# --- all of them

SAMPLES = {
    "rgb": (ImageCodec(), torch.zeros(3, 8, 8)),
    "gray": (ImageCodec(channels=1), torch.zeros(1, 8, 8)),
    "normal": (NormalCodec(), torch.zeros(3, 8, 8)),
    "depth": (DepthCodec(), torch.rand(1, 8, 8)),
    "labels": (LabelCodec(), torch.zeros(8, 8, dtype=torch.int64)),
    "mask": (MaskCodec(), torch.ones(1, 8, 8)),
    "feature map": (FeatureCodec(), torch.rand(6, 4, 4)),
    "two channels": (FeatureCodec(), torch.rand(2, 4, 4)),
    "embedding": (FeatureCodec(), torch.rand(6)),
    "tokens": (TokenCodec(), torch.arange(16)),
    "odd tokens": (TokenCodec(), torch.arange(15)),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_value_can_be_looked_at(name):
    codec, value = SAMPLES[name]

    shown = codec.picture(value)

    assert isinstance(codec, Codec)
    assert isinstance(shown, str) or min(shown.size) > 0


def test_sixteen_bit_grey_keeps_its_steps():
    codec = ImageCodec(channels=1, scale=1 / 65535, normalization="none")
    data = depth_file()

    image = codec.read(data)

    assert len(image.unique()) > 150
    torch.testing.assert_close(codec.read(codec.write(image)), image, atol=1e-6, rtol=0)
    assert codec.picture(image).mode == "L"


def test_pictures_of_the_wrong_shape_are_errors():
    with pytest.raises(ShapeError, match=r"float32\[3, H, W\]"):
        ImageCodec().picture(torch.zeros(1, 8, 8))
    with pytest.raises(ShapeError, match=r"int64\[H, W\]"):
        LabelCodec().picture(torch.zeros(8, 8))
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        ImageCodec(channels=4)


def test_every_modality_has_a_codec():
    for modality in MODALITIES.values():
        assert isinstance(codec_of(modality), Codec), modality.name

    assert codec_of(MODALITIES["depth"]) == DepthCodec()
    assert codec_of(MODALITIES["tok_rgb@224"]) == TokenCodec(vocab_size=16384)


def test_every_class_that_a_map_holds_is_named_beside_its_colour_the_largest_first():
    codec = LabelCodec(num_labels=4, offset=0, names=("none", "cat", "dog", "sea"))
    labels = torch.tensor([[2, 2, 2, 0]])

    dog, none = legend_of(codec, labels)

    assert (dog.name, dog.value, none.name, none.value) == ("dog", "75 %", "none", "25 %")
    assert codec.picture(labels).getpixel((0, 0)) == dog.color
    assert min(none.color) > 200  # what is nothing is light
    assert [k.name for k in LabelCodec(num_labels=4).legend(labels)] == ["class 2", "none"]


def test_class_maps_of_4m_name_their_classes():
    legend = codec_of(MODALITIES["semseg_coco"]).legend(torch.tensor([[1, 133]]))

    assert {key.name for key in legend} == {"person", "rug"}


def test_palettes_and_numbers_are_told_in_words_and_units():
    palette = legend_of(PaletteCodec(), [(0, 0, 0), (20, 40, 120)])
    numbers = legend_of(MetadataCodec(), {"original_width": 4032.0, "brightness": 109.286})

    assert [(k.name, k.value) for k in palette] == [("black", "#000000"), ("dark blue", "#142878")]
    assert [(k.name, k.value) for k in numbers] == [
        ("original width", "4032 px"), ("brightness", "109 of 255"),
    ]  # fmt: skip


def test_a_codec_without_a_legend_needs_none():
    assert legend_of(TextCodec(), "a dog") == ()


@pytest.mark.parametrize("text", ["a dog", "supercalifragilistic " * 9, "x" * 300, "", "Ondřej 猫"])
def test_wrapped_lines_fit_and_lose_no_letter(text):
    lines = wrapped(text, 64)

    assert all(font().getlength(line) <= 64 for line in lines)
    assert "".join(lines).replace(" ", "") == drawable(text).replace(" ", "")
