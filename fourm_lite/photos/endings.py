"""Names of files: which are photos, which are photos that nothing here reads, which archives."""

from __future__ import annotations

from pathlib import PurePosixPath

from fourm_lite.modalities.camera_files import HEIC, RAW, is_read, package_of
from fourm_lite.modalities.pictures import SUFFIXES

_UNREAD = "jxl j2k jpx jpf psd xcf svg eps exr hdr tga ico"
UNREAD = frozenset("." + ending for ending in _UNREAD.split()) | HEIC | RAW
"""Endings of photos and drawings that are listed, unless an extra reads them."""

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_ENDINGS = (".parquet", ".pq")
LINE_ENDINGS = (".jsonl", ".ndjson")
TEXT_ENDINGS = (".txt", ".txt.gz")


def suffix_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot.

    >>> suffix_of("a/b.tar.JPG")
    '.jpg'
    """
    return PurePosixPath(name).suffix.lower()


def is_picture(name: str) -> bool:
    """Whether a file's name ends as that of a picture does."""
    ending = suffix_of(name)
    return ending in SUFFIXES or is_read(ending)


def why_unread(name: str) -> str:
    """Why a photo of this name is not read; nothing where it is none, or is read."""
    ending = suffix_of(name)
    if ending not in UNREAD or is_read(ending):
        return ""
    package = package_of(ending)
    first = f"pip install {package}, or " if package else ""
    return f"{ending} is not read; {first}convert it to JPEG, PNG or WebP"


def is_tar(name: str) -> bool:
    """Whether a file's name is that of a tar, perhaps compressed."""
    return name.lower().endswith(TAR_ENDINGS)


def stem_of(name: str) -> str:
    """A relative name without its last ending.

    >>> stem_of("a.b/c.d.jpg")
    'a.b/c.d'
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + PurePosixPath(last).stem
