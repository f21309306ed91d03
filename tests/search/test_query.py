import numpy as np
import pytest
from tiny_pipeline import photo

from fourm_lite.errors import ConfigError
from fourm_lite.search.query import BESIDE_PICTURE, NEGATIVE_WEIGHT, Query, compose


def vectors(space, *items):
    return space.encode_query(list(items))


def test_conditioning_is_one_pass_on_everything(space):
    query = Query.of(caption="a red circle", rgb=photo(2), compose="conditioning")

    found = query.vector(space)

    assert query.way == "conditioning"
    both = vectors(space, {"caption": "a red circle", "rgb": photo(2)})[0]
    assert np.allclose(found, both, atol=1e-6)


def test_arithmetic_is_the_documented_formula(space):
    query = Query.of(
        {"caption": ["a red circle", "two dogs"], "rgb": photo(2)},
        without={"caption": "a blue square"},
        weights={"caption": 2, "not-caption": 0.25},
        compose="arithmetic",
    )

    found = query.vector(space)

    parts = vectors(
        space, {"caption": "a red circle"}, {"caption": "two dogs"}, {"rgb": photo(2)},
        {"caption": "a blue square"},
    )  # fmt: skip
    total = 2 * parts[0] + 2 * parts[1] + parts[2] - 0.25 * parts[3]
    assert np.allclose(found, total / np.linalg.norm(total), atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"without": {"caption": "a blue square"}}])
def test_words_beside_a_picture_move_its_query_towards_them(space, more):
    words, picture = {"caption": "a red circle"}, {"rgb": photo(2)}

    plain = Query.of(picture, **more).vector(space)
    query = Query.of({**picture, **words}, **more)

    asked = vectors(space, words, picture)
    assert query.way == "arithmetic"
    assert query.vector(space) @ asked[0] > plain @ asked[0]
    if not more:
        total = BESIDE_PICTURE * asked[0] + asked[1]
        assert np.allclose(query.vector(space), total / np.linalg.norm(total), atol=1e-5)
        # what is said counts
        even = Query.of({**picture, **words}, compose="arithmetic").vector(space)
        assert np.allclose(even, compose(asked), atol=1e-5)


def test_negatives_are_taken_off_after_conditioning(space):
    query = Query.of(rgb=photo(1), without={"caption": "two dogs"})

    found = query.vector(space)

    parts = vectors(space, {"rgb": photo(1)}, {"caption": "two dogs"})
    wanted = compose(parts[:1], negatives=parts[1:], negative_weights=[NEGATIVE_WEIGHT])
    assert np.allclose(found, wanted, atol=1e-6)


def test_weights_and_several_captions_choose_arithmetic_and_refuse_conditioning():
    assert Query.of(caption=["a", "b"]).way == "arithmetic"
    assert Query.of(caption="a", weights={"caption": 2.0}).way == "arithmetic"
    assert Query.of(caption="a", depth=photo()).way == "conditioning"
    with pytest.raises(ConfigError, match="compose='arithmetic'"):
        Query.of(caption=["a", "b"], compose="conditioning")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "nothing is asked for"),
        ({"caption": " "}, "'caption' is empty"),
        ({"caption": "a", "weights": {"captoin": 2.0}}, "Did you mean 'caption'"),
        ({"caption": "a", "compose": "arithmetics"}, "Did you mean 'arithmetic'"),
    ],
)
def test_a_query_that_makes_no_sense_says_why(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Query.of(**wrong)


def test_a_list_of_numbers_is_one_value():
    assert len(Query.of(vector_global=[1, 2, 3, 4]).terms) == 1
    assert len(Query.of(caption=["a", "b"]).terms) == 2


def test_persons_names_stand_for_the_models_in_all_parts_of_a_query():
    query = Query.of(
        text="a red circle",
        image=photo(1),
        without={"text": "two dogs"},
        weights={"text": 2, "image": 1, "not-text": 0.25},
    )

    assert [(t.name, t.weight, t.negative) for t in query.terms] == [
        ("caption", 2, False),
        ("rgb", 1, False),
        ("caption", 0.25, True),
    ]
