import json

import pytest

from fourm_lite.errors import CheckpointError
from fourm_lite.search.rerank_weights import DEFAULT_WEIGHTS, fitted_choice
from fourm_lite.search.search_file import FILE, FittedSearch, read_fitted

BOTH = {"text_to_image": {"cosine": 9.0, "caption": 5.0}, "image_to_text": {"cosine": 7.0}}
KEPT = FittedSearch(
    "tok_a", "500 photos", {"codes": BOTH, "pixels": BOTH}, "pixels", {"names": ["score"]}
)


def test_what_is_written_is_read_for_its_target_alone(tmp_path):
    KEPT.save(tmp_path)

    assert read_fitted(tmp_path, "tok_a") == KEPT
    assert read_fitted(tmp_path, "tok_b") is None
    assert read_fitted(None, "tok_a") is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"given": "words"},
        {"rerank": {"codes": {"text_to_image": {"cosin": 1.0}}}},
        {"rerank": {"codes": {"text_to_image": {"cosine": "much"}}}},
        {"rerank": {"codes": [1]}},
        {"rerank": 3},
        {"calibration": [1, 2]},
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, change):
    path = KEPT.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(CheckpointError, match=f"{FILE}.*fourm-lite calibrate"):
        read_fitted(tmp_path, "tok_a")


def test_a_model_whose_config_holds_weights_is_read_as_before():
    found = read_fitted(None, "tok_a", {**BOTH, "given": "both"})

    choice = fitted_choice(found, None, "image_to_text")
    assert (choice.weights, choice.given) == ({"cosine": 7.0}, "both")
    assert choice.source


def test_weights_serve_what_they_were_fitted_for_and_else_the_order_stays():
    assert fitted_choice(KEPT).weights == BOTH["text_to_image"]
    assert fitted_choice(KEPT, "both").weights == DEFAULT_WEIGHTS
    assert not fitted_choice(KEPT, "both").source
    assert fitted_choice(None).weights == {"cosine": 1.0}
