"""Names from data stay names: nothing that a file says leads out of a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pipeline import save_pipeline

from fourm_lite import FourMPipeline
from fourm_lite.embedders.features import FeatureStore
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.spec import Modality
from fourm_lite.names import check_name, is_inside, is_name, place_inside
from fourm_lite.training.staged import Stages

OUTSIDE = ("../x", "/etc", "a/../../b", "..", "C:\\x", "a\0b", "", "x" * 300, "\x1b[2J")


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_name_that_passes_is_one_step_below_any_folder(name):
    if not is_name(name):
        return

    place = os.path.normpath(os.path.join("/some/folder", name))

    assert os.path.dirname(place) == "/some/folder"
    assert name.isprintable()


@given(st.text(alphabet="./\\ab:~", max_size=12))
@settings(max_examples=300, deadline=None)
def test_a_path_that_is_inside_stays_below_any_folder(name):
    if is_inside(name):
        assert os.path.normpath(os.path.join("/some/folder", name)).startswith("/some/folder")


@pytest.mark.parametrize("name", [*OUTSIDE, 3, None, ["a"]])
def test_what_is_no_name_is_refused_in_a_sentence(name):
    with pytest.raises(ConfigError, match="plain name"):
        check_name(name, "a tokenizer")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "own" / "link").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigError, match="should lie in"):
        place_inside(tmp_path / "own", "link", "a tokenizer")


def rewritten(folder, **extra):
    config = json.loads((folder / "config.json").read_text())
    config["extra"] = {**config.get("extra", {}), **extra}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def model(tmp_path):
    return save_pipeline(tmp_path / "tiny")


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "..", "a/b"])
def test_a_model_whose_tokenizer_has_a_paths_name_is_not_opened(model, name):
    rewritten(model, tokenizers={name: "tokenizers/rgb"})

    with pytest.raises(ConfigError, match="plain name"):
        FourMPipeline.from_pretrained(model)


def test_a_config_opens_no_tokenizer_that_lies_elsewhere_unless_the_user_says_so(model, tmp_path):
    elsewhere = tmp_path / "tokenizer"
    (model / "tokenizers" / "rgb").rename(elsewhere)
    for place in (str(elsewhere), "../tokenizer", "~/tokenizer", 3):
        rewritten(model, tokenizers={"rgb": place})
        with pytest.raises(ConfigError, match="tokenizers="):
            FourMPipeline.from_pretrained(model)

    pipe = FourMPipeline.from_pretrained(model, {"rgb": elsewhere})

    assert Path(pipe.tokenizers.sources["rgb"]) == elsewhere


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "x\0"])
def test_a_modality_with_a_paths_name_is_refused(name):
    with pytest.raises(ConfigError, match="plain name"):
        Modality.from_dict({"name": name, "kind": "raw", "channels": 3, "directions": []})


@pytest.mark.parametrize("name", ["../../documents", "/documents", ".."])
def test_a_book_of_stages_empties_no_folder_but_its_own(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    entry = {"settings": {}, "facts": {}, "seconds": 0.0}
    (out / "stages.json").write_text(json.dumps({"format": 1, "stages": {name: entry}}))

    with pytest.raises(ConfigError, match="plain name"):
        Stages.open(out)


@pytest.mark.parametrize("stages", [[], {"photos": 3}, {"photos": {}}, {"photos": {"facts": 1}}])
def test_a_damaged_book_of_stages_is_told(tmp_path, stages):
    (tmp_path / "stages.json").write_text(json.dumps({"format": 1, "stages": stages}))

    if stages == []:
        assert Stages.open(tmp_path).entries == {}
        return
    with pytest.raises(ConfigError, match="damaged"):
        Stages.open(tmp_path)


@pytest.mark.parametrize("place", ["../secret.npz", "/etc/passwd", 7])
def test_a_list_of_feature_files_names_none_outside_of_its_folder(tmp_path, place):
    (tmp_path / "index.json").write_text(json.dumps({"photo": place}))

    with pytest.raises(FourMError, match="should lie in"):
        FeatureStore.open(tmp_path)
