"""A tiny model to grow, drawn photos with captions, and a network of 48 numbers a photo."""

import pytest
from growth_pack import pixels_4x4, write_pack
from tiny_pipeline import save_pipeline

from fourm_lite.search.search_file import FittedSearch


@pytest.fixture(scope="session")
def grown_from(tmp_path_factory):
    folder = save_pipeline(tmp_path_factory.mktemp("base") / "tiny")
    weights = {"codes": {"text_to_image": {"cosine": 5.0, "codes": 1.0}}}
    FittedSearch("tok_vector_global", "drawn photos", weights).save(folder)
    return folder


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("photos") / "pack")


@pytest.fixture(scope="session")
def network():
    return pixels_4x4
