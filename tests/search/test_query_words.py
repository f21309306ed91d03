"""A query as people write it: a sentence or a photo, without the name of a modality."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_pipeline import photo, save_pipeline

from fourm_lite.errors import ConfigError
from fourm_lite.search.engine import Search
from fourm_lite.search.gallery import index_photos, open_index
from fourm_lite.search.spaces import open_space


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    root = tmp_path_factory.mktemp("words")
    (root / "photos").mkdir()
    for i in range(4):
        photo(i).save(root / "photos" / f"{i}.png")
    space = open_space(save_pipeline(root / "model"))
    index_photos([root / "photos"], open_index(root / "idx", space), space)
    return Search.open(root / "idx"), root / "photos" / "2.png"


def test_a_sentence_and_a_photo_are_queries(search):
    asked, path = search

    for said, meant in (("a red dog", {"caption": "a red dog"}), (str(path), {"rgb": path}),
                        (path, {"rgb": path}), ({"text": "a", "image": path},
                                                {"caption": "a", "rgb": path})):  # fmt: skip
        assert asked(said, 4).ids == asked(meant, 4).ids
        np.testing.assert_array_equal(asked(said, 4).scores, asked(meant, 4).scores)


def test_what_was_meant_is_said_where_it_cannot_be_done():
    with pytest.raises(ConfigError, match=r"did you mean\s+Search\.open"):
        Search("a dog")
