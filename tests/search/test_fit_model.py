import shutil
from dataclasses import replace

import pytest
from tiny_pipeline import photo
from verbs import exit_code

from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.caption_sets import captioned
from fourm_lite.search.calibration.answer_features import CODES, KNOWN, LEVEL, LIKELIHOOD
from fourm_lite.search.calibration.calibrate import calibrate_answers, calibrate_by_model
from fourm_lite.search.calibration.probability import (
    MEANINGS,
    RELEVANCE,
    SHORT,
    Calibration,
    sureness,
)
from fourm_lite.search.engine import Search
from fourm_lite.search.gallery import index_photos, open_index
from fourm_lite.search.search_file import read_fitted
from fourm_lite.search.spaces import open_space

EVIDENCE = [LEVEL, CODES, LIKELIHOOD, KNOWN]
TARGET = "tok_vector_global"


@pytest.fixture
def indexed(tmp_path, space, pack):
    index = open_index(tmp_path / "idx", space)
    index_photos([pack / "captions.jsonl"], index, space)
    return index


def test_captions_calibrate_answers_to_words_in_any_order(indexed, space, pack):
    done = calibrate_answers(indexed, space, captioned(indexed, space, pack, "test"), depth=5)

    assert indexed.manifest.calibration["names"] == EVIDENCE
    assert 0 <= done.share_reranked <= 1
    search = Search(indexed, space)
    plain, again = search(caption="two dogs", k=3), search(caption="two dogs", k=3, rerank=5)
    assert plain.p_means == again.p_means == RELEVANCE
    assert plain.p_right == again.p_right == search(caption="two dogs", k=1).p_right
    assert plain.good_match == (plain.p_right >= 0.5)
    assert search(rgb=photo(0), k=1).p_right is None
    assert search(caption="two dogs", rgb=photo(0), k=1).p_right is None


def test_what_is_fitted_for_a_model_is_used_by_searches_with_it(
    capsys, tmp_path, model_folder, indexed, pack
):
    folder = shutil.copytree(model_folder, tmp_path / "model")

    code = exit_code("calibrate", "--model", folder, "--data", pack, "--split", "val")

    assert code == 0, capsys.readouterr().err
    learnt = read_fitted(folder, TARGET)
    assert set(learnt.weights) == {"codes", "pixels", "both"}
    assert "8 photos" in learnt.fitted_on
    taught = open_space(folder)
    found = calibrate_by_model(indexed, taught)
    assert list(found.names) == EVIDENCE
    search = Search(indexed, taught)
    assert 0 <= search(caption="two dogs on grass", rerank=5).p_right <= 1
    short = search(caption="the dogs", rerank=5)
    assert (short.p_right, short.good_match, short.p_means) == (None, None, SHORT)
    assert "write a sentence" in sureness(short)
    with pytest.raises(ConfigError, match="no confidence is kept"):
        calibrate_by_model(indexed, replace(taught, fitted=replace(learnt, calibration=None)))


def test_the_verb_calibrates_with_captions_and_without(
    capsys, tmp_path, indexed, pack, model_folder
):
    texts = tmp_path / "absent.txt"
    texts.write_text("quantum physics\n\nsubmarine under ice\n", encoding="utf-8")
    words = ("index", "calibrate", tmp_path / "idx", "--model", model_folder)

    given = exit_code(*words, "--data", pack, "--split", "test", "--absent", texts, "--json")
    alone = exit_code(*words)
    wrong = exit_code(*words, "--rerank", "5")

    out, err = capsys.readouterr()
    assert given == 0, err
    assert '"flagged_fitting"' in out
    assert (alone, wrong) == (2, 2)
    assert "no confidence is kept beside this model" in err
    assert "give --data" in err


def test_an_index_that_was_calibrated_before_meanings_opens_and_says_so(
    capsys, caplog, tmp_path, indexed, model_folder
):
    numbers = {"weights": (1.0, 0.5), "centres": (0.4, 0.1), "scales": (0.1, 0.1)}
    old = Calibration(method="logistic", names=("score", "margin"), bias=0.1, **numbers)
    indexed.set_calibration(old)

    search = Search.open(tmp_path / "idx", model_folder)
    exit_code("index", "info", tmp_path / "idx")

    assert "calibrated by an earlier version" in caplog.text
    assert 0 < search(rgb=photo(0), k=1).p_right < 1
    assert MEANINGS[""].partition(";")[0] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mini", "EPFL-VILAB/4M-21_B", "hf:network"])
def test_only_a_folder_of_ones_own_is_calibrated(name, pack, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert exit_code("calibrate", "--model", name, "--data", pack, "--split", "val") == 2

    assert "--model must be a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
