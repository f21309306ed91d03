import sys

import pytest
from tiny import tiny_model

from fourm_lite.errors import CheckpointError, NotFetchedError
from fourm_lite.io import hub
from fourm_lite.io.checkpoint import read


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A place of shipped things of our own."""
    monkeypatch.setattr(hub, "assets", lambda: tmp_path / "assets")
    for name in ("tokenizers/depth/weights", "generation/models/mini", "generation/plans"):
        (tmp_path / "assets" / name).mkdir(parents=True)
    (tmp_path / "assets/generation/plans/rgb2all.toml").write_text("")
    return tmp_path / "assets"


def test_a_path_that_exists_is_its_own_answer(tmp_path):
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_a_shipped_name_is_found_on_its_shelf(shelf):
    assert hub.resolve("mini") == shelf / "generation/models/mini"
    assert hub.shipped("rgb2all.toml") == shelf / "generation/plans/rgb2all.toml"
    assert hub.shipped("generation/plans") == shelf / "generation/plans"
    assert hub.shipped_names() == ["depth", "mini", "rgb2all.toml"]


def test_a_folder_that_keeps_its_checkpoint_in_weights_answers_with_it(shelf):
    assert hub.shipped("depth") == shelf / "tokenizers/depth"
    assert hub.resolve("depth") == shelf / "tokenizers/depth/weights"
    assert hub.resolve(shelf / "tokenizers/depth") == shelf / "tokenizers/depth/weights"


@pytest.mark.parametrize("name", ["", " ", "nothing", "a\0b", "~nobody/x", "x" * 10_000, "a/b/c"])
def test_what_is_nowhere_is_told(shelf, name):
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        hub.resolve(name)


def test_a_near_shipped_name_is_suggested(shelf):
    with pytest.raises(CheckpointError, match="Did you mean 'mini'"):
        hub.resolve("mimi")
    with pytest.raises(CheckpointError, match="Did you mean 'depth'"):
        hub.shipped("dpeth")


@pytest.mark.parametrize("name", ["../outside", "tokenizers/../../outside", "/etc", "~", "."])
def test_a_shipped_name_never_leads_outside(shelf, name):
    (shelf.parent / "outside").mkdir()

    with pytest.raises(CheckpointError):
        hub.shipped(name)


def test_a_hub_id_without_a_network_is_told():
    with pytest.raises(CheckpointError, match="could it be fetched from the hub"):
        hub.resolve("nobody/nothing-of-this-name")


class FakeHub:
    """Stands for huggingface_hub: answers with a folder, remembers what was asked."""

    def __init__(self, folder):
        self.folder = folder

    def snapshot_download(self, hub_id, **options):
        self.asked = (hub_id, options)
        return str(self.folder)


def test_a_hub_id_is_fetched_with_its_licence_and_without_pickles(tmp_path, monkeypatch, caplog):
    tiny_model().save(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: sample-code\n---\n")
    fake = FakeHub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    caplog.set_level("INFO", "fourm_lite")

    checkpoint = read("someone/some-model")

    hub_id, options = fake.asked
    assert hub_id == "someone/some-model"
    assert not [p for p in options["allow_patterns"] if "bin" in p or "pt" in p or p == "*"]
    assert checkpoint.licence == "sample-code"
    assert "licence sample-code" in caplog.text


def test_the_cache_answers_where_the_network_refuses(tmp_path, monkeypatch):
    tiny_model().save(tmp_path)

    class Refusing(FakeHub):
        def snapshot_download(self, hub_id, *, local_files_only=False, **options):
            if not local_files_only:
                raise ConnectionError("a proxy says no")
            return str(self.folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Refusing(tmp_path))

    assert hub.resolve("someone/some-model") == tmp_path


def test_what_is_in_no_cache_is_told_with_its_command():
    with pytest.raises(NotFetchedError, match="`fourm-lite download nobody/nothing`") as told:
        hub.resolve("nobody/nothing")

    assert told.value.source == "nobody/nothing"


def test_things_lie_at_the_root_of_a_source_checkout():
    assert (hub.assets() / "tokenizers").is_dir()
    assert (hub.assets() / "generation").is_dir()
