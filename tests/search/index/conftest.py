"""A folder with everything that a folder of photos can hold, made by hand."""

import functools
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image


def picture(seed, size=(24, 16)):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (2, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def png_bomb(width=30_000, height=30_000):
    """A valid one-bit PNG of a few kilobytes that unpacks to 900 megapixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def write_hard_files(folder):
    """Fills a folder; returns the ids that must be indexed and those that must be listed."""
    plain = picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = plain.convert("P")
    good = {
        "animated.gif": encoded(
            plain, "GIF", save_all=True, append_images=[picture(1), picture(2)]
        ),
        "cmyk.jpg": encoded(plain.convert("CMYK")),
        "deep.png": encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16)), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=0),
        "plain.jpg": encoded(plain),
        "rotated.jpg": encoded(plain, exif=exif.tobytes()),
        "grey.webp": encoded(plain.convert("L"), "WEBP"),
        "子目录/猫 照片.jpg": encoded(picture(3)),
        "no_suffix": encoded(picture(4), "PNG"),
    }
    bad = {
        "bomb.png": png_bomb(),
        "empty.jpg": b"",
        "text.jpg": b"this is a text",
        "truncated.jpg": encoded(picture(5, (200, 200)))[:700],
    }
    for name, data in {**good, **bad, "notes.txt": b"hello", "README": b"read me"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    os.symlink(folder / "gone.jpg", folder / "broken.jpg")
    os.symlink(folder, folder / "loop")
    os.symlink("self.jpg", folder / "self.jpg")
    return sorted(good), sorted([*bad, "broken.jpg", "self.jpg"])


@pytest.fixture
def hard_folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    good, bad = write_hard_files(folder)
    return folder, good, bad


@pytest.fixture
def photos(tmp_path):
    """Twelve small pictures in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02d}.jpg").write_bytes(encoded(picture(i)))
    return folder
