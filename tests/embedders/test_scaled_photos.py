"""Photos much larger than a network is shown are decoded at a fraction of their size."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from fourm_lite.embedders.base import NetworkEmbedder, Towers
from fourm_lite.embedders.image_configs import pixels_of, preset
from fourm_lite.embedders.image_transforms import ImagePreprocess
from fourm_lite.errors import FourMError
from fourm_lite.modalities.pictures import SPARE, decode, open_picture
from fourm_lite.search.gallery import index_photos, open_index
from fourm_lite.search.space import DualEncoderSpace


def photo(width, height, seed=0, **options) -> bytes:
    """Smooth colours with edges, as a JPEG."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def embedder_of(prepare) -> NetworkEmbedder:
    return NetworkEmbedder(
        "toy", Towers(lambda pictures: pixels_of(prepare, pictures).flatten(1)),
        identity=lambda: "toy", preprocess=prepare,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("short", "want"), [(None, 900), (901, 900), (450, 450), (200, 225), (1, 113)]
)
def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_will_do(short, want):
    picture = open_picture(photo(1200, 900), short_side=short)

    assert picture.height == want
    assert short is None or short > 900 or min(picture.size) >= short


def test_what_is_no_jpeg_is_decoded_whole():
    out = io.BytesIO()
    Image.open(io.BytesIO(photo(640, 480))).save(out, "PNG")

    assert open_picture(out.getvalue(), short_side=30).size == (640, 480)


def test_a_turned_photo_is_turned_and_a_broken_one_is_told(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo(1200, 900, exif=exif.tobytes())

    assert decode(turned, short_side=100).size == (113, 150)
    with pytest.raises(FourMError, match="broken or cut off"):
        decode(photo(1200, 900)[:3000], short_side=100)


@pytest.mark.parametrize("name", ["imagenet", "clip", "unit"])
@pytest.mark.parametrize("size", [32, 64])
def test_a_network_is_shown_nearly_the_same_pixels(name, size):
    prepare = preset(name, size=size)
    embedder, data = embedder_of(prepare), photo(1600, 1200)

    least = embedder.short_side

    assert SPARE * size < least < 4 * size
    whole, scaled = (prepare(decode(data, short_side=s)) for s in (None, least))
    assert decode(data, short_side=least).height < 1200
    assert (whole - scaled).abs().mean() < 0.01 * (whole.max() - whole.min())


def test_where_every_pixel_counts_photos_are_decoded_whole():
    as_it_came = ImagePreprocess(resize="none", crop=None)

    assert embedder_of(as_it_came).short_side is None
    assert NetworkEmbedder("toy", Towers(torch.stack), identity=lambda: "").short_side is None


def test_a_photo_finds_itself_whether_it_was_indexed_or_asked_for(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(photo(800, 600, i))
    space = DualEncoderSpace(embedder_of(preset("unit", size=32)), "")
    index = open_index(tmp_path / "idx", space)

    index_photos([folder], index, space)

    for ask in (
        lambda p: p,
        lambda p: p.read_bytes(),
        partial(decode, short_side=space.short_side),
    ):
        (query,) = space.encode_query([{"rgb": ask(folder / "1.jpg")}])
        hits = index.search(query, k=1)
        assert hits.ids == ["1.jpg"]
        assert hits.scores[0] == pytest.approx(1, abs=1e-6)
