"""Errors that a newcomer meets first: what was given is named, and what to write instead."""

from __future__ import annotations

import pytest
from tiny_pipeline import photo
from verbs import run

from fourm_lite.cli.index import print_report
from fourm_lite.cli.output import print_table
from fourm_lite.errors import ConfigError
from fourm_lite.photos.source_parts import other_files
from fourm_lite.search.gallery import nothing_in
from fourm_lite.search.index.ingest import IngestReport


def refused(capsys, *words) -> str:
    code, _, err = run(capsys, *words)
    assert code == 2
    return err


def test_a_missing_photo_is_named_before_any_model_is_opened(capsys):
    told = refused(capsys, "classify", "nothere.jpg", "--model", "no/such/model")

    assert "there is no photo at nothere.jpg" in told
    assert "model" not in told


def test_words_that_look_like_a_file_are_answered_in_words_of_the_command_line(capsys):
    told = refused(capsys, "search", "photos.idx", "photo.jpg")

    assert '--caption "photo.jpg"' in told
    assert "{" not in told


def test_labels_with_commas_are_answered_with_what_to_write(capsys, tmp_path):
    photo(0).save(tmp_path / "a.png")
    words = ("--labels", "a koala, a dog", "--model", "mini")

    told = refused(capsys, "classify", tmp_path / "a.png", *words)

    assert "--labels 'a koala' --labels 'a dog'" in told


def test_a_photo_that_is_to_be_converted_is_said_to_be_no_weights(capsys, tmp_path):
    photo(0).save(tmp_path / "a.jpg")

    told = refused(capsys, "convert", tmp_path / "a.jpg", "-o", tmp_path / "out")

    assert "cannot be read as a .pth" in told
    assert "Error" not in told.removeprefix("error")


def test_a_file_that_is_no_recipe_is_said_to_be_none(capsys, tmp_path):
    (tmp_path / "a.toml").write_text("[build-system]\nrequires = []\n")

    told = refused(capsys, "train", tmp_path / "a.toml")

    assert "a.toml is no recipe: it has build-system" in told
    assert "Recipe" not in told


def test_a_key_that_a_recipe_does_not_know_names_no_class(capsys, tmp_path):
    (tmp_path / "a.toml").write_text("[model]\n[modell]\n")

    told = refused(capsys, "train", tmp_path / "a.toml")

    assert "there is no key 'modell'. Did you mean 'model'?" in told
    assert "Recipe" not in told


def test_files_that_are_no_photos_are_named(capsys, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("notes.txt", "a.jpg", "sub/list.csv", "b.tar", "c.heic", ".hidden.txt", "plain"):
        (tmp_path / name).touch()

    others = other_files([tmp_path])
    print_report("idx", 1, IngestReport(), others)

    assert others == ["notes.txt", "sub/list.csv"]
    assert "notes.txt, sub/list.csv: not read" in capsys.readouterr().out


def test_a_folder_without_photos_says_what_it_holds(tmp_path):
    assert "holds nothing" in nothing_in([tmp_path], [])
    assert "region features" not in nothing_in([tmp_path], [])
    (tmp_path / "a.npz").touch()
    assert "region features" in nothing_in([tmp_path], [])


def test_of_a_path_that_is_too_long_the_end_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")

    print_table(("id", "uri"), [("1", "/a/very/long/" * 5 + "koala.jpg")], whole=1, ends={"uri"})

    assert "koala.jpg" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["koalla.jpg", "a.png"])
def test_in_python_a_missing_photo_is_answered_in_python(text):
    from fourm_lite.modalities.plain_items import as_item

    with pytest.raises(ConfigError, match=r"no photo at '.*\{'caption': \.\.\.\}"):
        as_item(text)


def test_one_or_two_words_to_a_model_that_ships_are_answered_with_advice(capsys):
    from fourm_lite.cli.search import _advise
    from fourm_lite.search.query import Query

    for words, model, told in (
        ("a dog", "mini", True),
        ("Katze", "joint:joint_space", True),
        ("a dog runs on grass", "mini", False),
        ("a dog", "hf:somebody/clip", False),
    ):
        _advise(Query.of(caption=words), model)
        assert ("English sentences" in capsys.readouterr().err) == told


def test_a_query_before_its_index_and_a_folder_of_photos_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.idx").mkdir()
    (tmp_path / "own.idx" / "manifest.json").write_text("{}")
    (tmp_path / "photos").mkdir()

    turned = refused(capsys, "search", "two brown dogs", "own.idx")
    long = refused(capsys, "search", "nothing.idx", "two brown dogs " * 40)
    folder = refused(capsys, "search", "photos", "two brown dogs")

    assert 'fourm-lite search own.idx "two brown dogs"' in turned
    assert "a folder of something else; `fourm-lite index" in folder
    assert "there is no index at" in long
