"""A tiny model to grow, drawn photos with captions, and a network of 48 numbers a photo."""

import pytest
from growth_pack import pixels_4x4, write_pack
from tiny_pipeline import save_pipeline


@pytest.fixture(scope="session")
def grown_from(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("photos") / "pack")


@pytest.fixture(scope="session")
def network():
    return pixels_4x4
