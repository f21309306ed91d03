"""Hand-made safetensors files, right and wrong."""

import json
import struct

import pytest


def encoded(header, data=b"", *, length=None):
    """The bytes of a safetensors file; `length` lies about the header's."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def raw():
    """A function that gives the bytes of a safetensors file from a header and values."""
    return encoded


@pytest.fixture
def raw_file(tmp_path):
    """A function that writes such a file and gives its path."""

    def make(header, data=b"", *, length=None, name="model.safetensors"):
        path = tmp_path / name
        path.write_bytes(encoded(header, data, length=length))
        return path

    return make


@pytest.fixture
def folder_of(tmp_path):
    """A function that makes a hub folder with these files (text or bytes)."""

    def make(**files):
        place = tmp_path / "checkpoint"
        place.mkdir(exist_ok=True)
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            (place / name.replace("__", ".")).write_bytes(content)
        return place

    return make
