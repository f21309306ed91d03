"""What photos say of themselves, and photos of phones and cameras."""

import io

import numpy as np
import pytest
from PIL import Image

from fourm_lite.errors import ConfigError
from fourm_lite.modalities import camera_files
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.photos.columns import photo_facts
from fourm_lite.photos.item import Item, Skipped
from fourm_lite.photos.sources import open_sources
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import index_items


def taken(year, size=(40, 20), **more):
    """The bytes of a photo of a year; `orientation` and `gps` as EXIF says them."""
    exif = Image.Exif()
    exif[271], exif[272] = "Canon", "Canon EOS R5"
    exif.get_ifd(34665)[36867] = f"{year}:05:01 12:00:00"
    if "orientation" in more:
        exif[274] = more["orientation"]
    if "gps" in more:
        exif.get_ifd(34853).update(more["gps"])
    stream = io.BytesIO()
    Image.new("RGB", size, (year % 256, 9, 9)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def means(images):
    return np.stack([np.asarray(i.resize((2, 2)), np.float32).reshape(-1) + 1 for i in images])


def test_size_is_upright_and_the_date_compares_as_text():
    facts = photo_facts(taken(2020, orientation=6))

    assert facts == {"width": 20, "height": 40, "taken": "2020-05-01T12:00:00",
                     "camera": "Canon EOS R5"}  # fmt: skip


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_every_form_of_photo_tells_its_size(form):
    stream = io.BytesIO()
    Image.new("RGB", (40, 20)).save(stream, form)

    facts = photo_facts(stream.getvalue())

    assert (facts["width"], facts["height"]) == (40, 20)


def test_the_place_is_told_only_to_who_asks():
    south = {1: "S", 2: (33.0, 30.0, 0.0), 3: "E", 4: (151.0, 0.0, 36.0)}
    data = taken(2020, gps=south)

    assert "latitude" not in photo_facts(data)
    facts = photo_facts(data, gps=True)
    assert facts["latitude"] == pytest.approx(-33.5)
    assert facts["longitude"] == pytest.approx(151.01)


def test_rows_are_found_by_the_date_of_their_photos(tmp_path):
    for year in (2018, 2019, 2021, 2022):
        (tmp_path / f"{year}.jpg").write_bytes(taken(year))
    index = Index.create(tmp_path / "idx", space="toy")

    index_items(open_sources([tmp_path]), means, index)

    hits = index.search(np.ones(12), k=9, where="taken > '2020-01-01' AND camera LIKE 'Canon%'")
    assert sorted(hits.ids) == ["2021.jpg", "2022.jpg"]


def test_a_column_of_the_source_counts_before_what_the_photo_says(tmp_path):
    (tmp_path / "a.jpg").write_bytes(taken(2018))
    (tmp_path / "l.jsonl").write_text('{"file": "a.jpg", "taken": "1999"}')
    index = Index.create(tmp_path / "idx", space="toy")

    index_items(open_sources([tmp_path / "l.jsonl"]), means, index)

    assert index.get(["a.jpg"], ["taken"]).column(0).to_pylist() == ["1999"]


@pytest.mark.parametrize(("name", "package"), [("a.HEIC", "pillow-heif"), ("a.nef", "rawpy")])
def test_what_an_extra_reads_is_listed_with_its_install_line(tmp_path, monkeypatch, name, package):
    monkeypatch.setattr(camera_files, "find_spec", lambda name: None)
    (tmp_path / name).write_bytes(b"a phone's")

    (one,) = open_sources([tmp_path])

    assert isinstance(one, Skipped)
    assert f"pip install {package}" in one.reason


def test_a_heic_photo_is_read_where_the_extra_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[272] = "iPhone"
    Image.new("RGB", (64, 32), (200, 30, 30)).save(tmp_path / "a.heic", exif=exif)

    (one,) = open_sources([tmp_path])

    assert isinstance(one, Item)
    assert np.abs(np.asarray(open_rgb(one.read()), int).mean((0, 1)) - (200, 30, 30)).max() < 12
    assert photo_facts(one.read()) == {"width": 64, "height": 32, "camera": "iPhone"}


def test_a_raw_photo_is_developed_where_the_extra_is():
    pytest.importorskip("rawpy")
    picture = open_rgb(dng(), max_pixels=64 * 48)

    assert picture.size == (64, 48)
    with pytest.raises(Exception, match="at most 100 are read"):
        open_rgb(dng(), max_pixels=100)


def test_a_tiff_that_is_no_raw_file_is_read_as_before():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(stream, "TIFF", tiffinfo={271: "Canon"})

    assert not camera_files.is_raw(stream.getvalue())
    assert open_rgb(stream.getvalue()).getpixel((0, 0)) == (1, 2, 3)


def dng(width=64, height=48):
    """A raw file of an even grey, uncompressed: one plane of 16 bits behind a Bayer filter."""
    pixels = np.full((height, width), 8000, "<u2").tobytes()
    shorts = {256: (width,), 257: (height,), 258: (16,), 259: (1,), 262: (32803,), 274: (1,),
              277: (1,), 278: (height,), 33421: (2, 2), 50717: (65535,)}  # fmt: skip
    tags = {k: (3, len(v), np.array(v, "<u2").tobytes()) for k, v in shorts.items()}
    tags |= {271: (2, 5, b"Test\0"), 272: (2, 5, b"Test\0"), 50708: (2, 5, b"Test\0")}
    tags |= {254: (4, 1, b"\0" * 4), 279: (4, 1, np.array([len(pixels)], "<u4").tobytes())}
    tags |= {33422: (1, 4, b"\0\1\1\2"), 50706: (1, 4, b"\1\4\0\0"), 50778: (3, 1, b"\x15\0")}
    matrix = np.array([(1 if i % 4 == 0 else 0, 1) for i in range(9)], "<i4").tobytes()
    tags |= {50721: (10, 9, matrix), 50728: (5, 3, np.array([1] * 6, "<u4").tobytes())}
    tags[273] = (4, 1, b"????")
    place = 8 + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    start = place + sum(len(v[2]) + len(v[2]) % 2 for v in tags.values() if len(v[2]) > 4)
    tags[273] = (4, 1, np.array([start], "<u4").tobytes())
    for tag, (kind, count, value) in sorted(tags.items()):
        entries += np.array([tag, kind], "<u2").tobytes() + np.array([count], "<u4").tobytes()
        if len(value) <= 4:
            entries += value.ljust(4, b"\0")
        else:
            entries += np.array([place + len(extra)], "<u4").tobytes()
            extra += value + b"\0" * (len(value) % 2)
    head = b"II*\0" + np.array([8], "<u4").tobytes() + np.array([len(tags)], "<u2").tobytes()
    return head + entries + b"\0" * 4 + extra + pixels


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from fourm_lite.search.gallery import index_photos

    monkeypatch.setattr(camera_files, "find_spec", lambda name: None)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.heic").write_bytes(b"a phone's")
    index = Index.create(tmp_path / "idx", space="toy")
    space = SimpleNamespace(fingerprints={}, former_fingerprints=lambda n: (), reads="pictures",
                            opener=None, short_side=None)  # fmt: skip

    with pytest.raises(ConfigError, match=r"3 x \.heic is not read; pip install"):
        index_photos([tmp_path / "photos"], index, space)
