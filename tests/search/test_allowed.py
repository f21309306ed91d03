"""An index chooses nothing that its user did not name before."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from fourm_lite.errors import ConfigError
from fourm_lite.search.engine import Search
from fourm_lite.search.index.manifest import read_manifest, require_allowed, write_manifest


@pytest.fixture
def foreign(index_folder, model_folder, tmp_path, monkeypatch):
    """An index that came from elsewhere: this user never named its model."""
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(index_folder, tmp_path / "photos.idx")
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path / "photos.idx"


def names(index, **changes):
    manifest = read_manifest(str(index))
    write_manifest(str(index), dataclasses.replace(manifest, **changes))
    return index


@pytest.mark.parametrize("form", ["{0}/model", "hf:{0}/model", "timm:{0}/model", "onnx:{0}/n.onnx"])
def test_an_index_from_elsewhere_opens_no_path(foreign, tmp_path, form):
    names(foreign, model=form.format(tmp_path))

    with pytest.raises(ConfigError, match="does not choose what is opened"):
        Search.open(foreign)


def test_an_index_from_elsewhere_fetches_nothing_from_a_hub(foreign):
    names(foreign, model="someone/network")

    with pytest.raises(ConfigError, match="someone/network"):
        Search.open(foreign)


@pytest.mark.parametrize(
    "source",
    ["EPFL-VILAB/4M-21_B", ["depth=EPFL-VILAB/4M_tokenizers_depth_8k_224-448", "text=4m"]],
)
def test_what_is_published_under_4m_needs_no_naming(source, tmp_path, monkeypatch):
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    require_allowed(source, "--model")

    with pytest.raises(ConfigError, match="does not choose"):
        require_allowed("EPFL-VILAB/4M-21_C", "--model")


def test_a_folder_here_does_not_stand_in_for_a_published_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EPFL-VILAB" / "4M-21_B").mkdir(parents=True)

    with pytest.raises(ConfigError, match="does not choose"):
        require_allowed("EPFL-VILAB/4M-21_B", "--model")


def test_a_model_that_the_user_names_once_is_opened_from_then_on(foreign, tmp_path):
    names(foreign, model=str(tmp_path / "model"))

    Search.open(foreign, tmp_path / "model")

    assert Search.open(foreign)(caption="two dogs").ids


def test_tokenizers_that_a_manifest_names_are_not_opened_either(foreign, tmp_path):
    extra = {**read_manifest(str(foreign)).extra, "tokenizers": str(tmp_path)}
    names(foreign, extra=extra)

    with pytest.raises(ConfigError, match="--tokenizers"):
        Search.open(foreign, tmp_path / "model")


def test_a_folder_here_does_not_stand_in_for_a_shipped_name(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    names(foreign, model="mini")

    with pytest.raises(ConfigError, match="does not choose"):
        Search.open(foreign)


def test_where_names_cannot_be_kept_the_user_is_asked_again(foreign, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOURM_LITE_CACHE", str(tmp_path / "file"))
    names(foreign, model=str(tmp_path / "model"))

    assert Search.open(foreign, tmp_path / "model")(caption="two dogs").ids
    with pytest.raises(ConfigError, match="--model"):
        Search.open(foreign)
