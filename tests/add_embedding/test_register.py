"""Any network becomes a modality; whatever is wrong is said before the work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import photo
from verbs import run

from fourm_lite import FourMPipeline, load_model, open_space, register_embedding
from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.io import files
from fourm_lite.io.files import alone

QUICK = {"steps": 3, "batch_size": 8, "tokenizer_steps": 4, "tokens": 4}


@pytest.fixture(scope="module")
def added(tmp_path_factory, grown_from, pack, network):
    out = tmp_path_factory.mktemp("grown") / "out"
    return register_embedding(
        "net", network, pack, out=out, model=grown_from, licence="CC0", **QUICK
    )


@pytest.fixture(scope="module")
def pipe(added):
    return FourMPipeline.from_pretrained(added.folder)


def test_the_new_modality_is_one_like_any_other(pipe, added, network):
    given = {"rgb": photo(3), "caption": "two dogs"}

    vectors = pipe.embed([given, {"caption": "a red circle"}], target="net")
    made = pipe.generate({"caption": "a red circle"}, ["net"])["net"]
    said = pipe.generate({"net": network([photo(3)])[0]}, ["caption"])["caption"]

    assert pipe.model.can(["rgb@32", "caption"], "net")
    assert pipe.model.can(["net"], "caption")
    assert vectors.shape == (2, 48)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert made.tokens.shape == (4,)
    assert made.value.shape == (48,)
    assert isinstance(said.text, str)
    assert added.modality == pipe.model.modality("net")


def test_old_weights_stay_as_they_were_bit_for_bit(added, grown_from):
    old, new = load_model(grown_from).state_dict(), load_model(added.folder).state_dict()

    assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert {name.split(".")[1] for name in set(new) - set(old)} == {"net"}
    # and so does what was fitted for searches of the old embedding, for that one alone
    spaces = [open_space(folder, target="vector_global") for folder in (grown_from, added.folder)]
    assert spaces[0].fitted is not None
    assert spaces[0].fitted == spaces[1].fitted
    assert open_space(added.folder, target="net").fitted is None


def test_everything_is_trained_when_it_is_asked_for(tmp_path, grown_from, pack, network):
    out = tmp_path / "all"

    register_embedding("net", network, pack, out=out, model=grown_from, train="all", **QUICK)

    old, new = load_model(grown_from).state_dict(), load_model(out).state_dict()
    assert not torch.equal(old["decoder.0.mlp.fc1.weight"], new["decoder.0.mlp.fc1.weight"])
    assert open_space(out, target="vector_global").fitted is None


class KilledError(BaseException):
    """Stands for SIGKILL."""


def test_a_kill_while_anything_is_removed_is_gone_on_from(tmp_path, grown_from, pack, network):
    def call(**more):
        return register_embedding(
            "net", network, pack, out=tmp_path / "out", model=grown_from, **{**QUICK, **more}
        )

    def cut_short(path, **_):
        next(path.rglob("*.*")).unlink()
        raise KilledError

    def killed(**more):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.shutil, "rmtree", cut_short)
            with pytest.raises(KilledError):
                call(**more)

    killed()  # while the checkpoints of the tokenizer are removed, then those of the model
    killed()
    call()
    assert not list(tmp_path.rglob(".*.tmp"))
    killed(tokens=3)  # while stages are removed to be made anew
    added = call(tokens=3)

    assert added.report["tuning"]["cross_entropy_of_start"] > 0
    assert not list(tmp_path.rglob(".*.tmp"))
    assert not list(tmp_path.rglob("step-*"))


def test_two_calls_in_one_folder_are_refused_in_a_sentence(tmp_path, grown_from, pack, network):
    with alone(tmp_path), pytest.raises(FourMError, match="another process"):
        register_embedding("net", network, pack, out=tmp_path, model=grown_from, **QUICK)


def test_a_second_call_skips_every_stage(added, grown_from, pack):
    def never(pictures):
        raise AssertionError("the network was asked again")

    never.__module__, never.__qualname__ = "conftest", "pixels_4x4"
    from fourm_lite.embedders.load import wrap_callable

    again = wrap_callable(never, name=added.report["embedder"]["name"].removeprefix("callable:"))
    again.__dict__["dim"] = 48
    before = (added.folder / "model.safetensors").stat().st_mtime_ns

    second = register_embedding(
        "net", again, pack, out=added.folder, model=grown_from, licence="CC0", **QUICK
    )

    assert second.skipped == ("photos", "vectors", "tokenizer", "model", "figures", "report")
    assert (added.folder / "model.safetensors").stat().st_mtime_ns == before
    assert second.report == added.report


def test_the_folder_opens_after_it_was_moved_in_a_new_process(tmp_path, added):
    moved = tmp_path / "elsewhere"
    shutil.copytree(added.folder, moved, ignore=shutil.ignore_patterns("work"))
    code = (
        "import sys; from fourm_lite import FourMPipeline\n"
        "pipe = FourMPipeline.from_pretrained(sys.argv[1])\n"
        "print(pipe.embed({'caption': 'two dogs'}, target='net').shape, "
        "pipe.generate({'caption': 'two dogs'}, ['tok_rgb@32'])['tok_rgb@32'].tokens.shape)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(moved)], capture_output=True, text=True, cwd=tmp_path
    )

    assert done.stdout.strip() == "(48,) (16,)", done.stderr


def test_the_network_itself_may_embed_the_gallery(pipe, network):
    from fourm_lite.embedders.load import load_embedder

    space = open_space(pipe, target="net", gallery=load_embedder(network))

    vectors, codes = space.encode_document([photo(1), photo(2)])
    assert vectors.shape == (2, 48)
    assert codes.shape == (2, 4)
    raw = network([photo(1)])[0] - space.centre.mean
    np.testing.assert_allclose(vectors[0], raw / np.linalg.norm(raw), atol=1e-5)


def test_the_report_and_the_card_say_what_was_measured(added):
    report = json.loads((added.folder / "report.json").read_text())
    card = (added.folder / "card.md").read_text()

    assert report == added.report
    assert report["photos"]["train"] + report["photos"]["held_out"] == 40
    assert [u["uri"].endswith("broken.png") for u in report["photos"]["unreadable"]] == [True]
    assert set(report["retrieval"]["caption"]) == {
        f"{who}, {where} gallery" for who in ("model", "ridge") for where in ("raw", "tokenized")
    }
    assert card.startswith("---\nlicense: CC0\n---\n")
    assert str(report["tokenizer"]["cosine_centred"]) in card
    config = json.loads((added.folder / "config.json").read_text())
    assert config["extra"]["added"][0]["modality"] == "net"


def test_a_second_network_can_be_added_to_the_first(tmp_path, added, pack, network):
    second = register_embedding("other", network, pack, out=tmp_path / "two", model=added.folder,
                                **QUICK)  # fmt: skip

    pipe = FourMPipeline.from_pretrained(second.folder)
    assert pipe.embed({"caption": "two dogs"}, target="net").shape == (48,)
    assert pipe.embed({"caption": "two dogs"}, target="other").shape == (48,)


def test_the_verbs_of_search_work_with_it(capsys, tmp_path, added, pack):
    def told(*words):
        code, out, err = run(capsys, *words)
        assert code == 0, err
        return out

    model = ("--model", added.folder)
    index = tmp_path / "idx"
    made = json.loads(
        told("index", pack / "images", "-o", index, *model, "--target", "net", "--json")
    )
    found = told("search", index, "--caption", "two dogs", "--json")

    assert made["rows"] == 40
    assert json.loads(found)


def test_the_verb_says_that_a_network_is_missing_and_writes_nothing(capsys, tmp_path, grown_from):
    pytest.importorskip("onnxruntime")
    words = ("add-embedding", "net", "--embedder", f"onnx:{tmp_path / 'none.onnx'}", "--photos",
             tmp_path, "--out", tmp_path / "out", "--model", grown_from)  # fmt: skip

    code, _, err = run(capsys, *words)

    assert code != 0
    assert "does not exist" in err
    assert not (tmp_path / "out").exists()


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my net", "letters, digits"),
        ("tok@224", "letters, digits"),
        ("", "letters, digits"),
        ("caption", "already has"),
        ("tok_vector_global", "already has"),
        ("semseg", "already has"),
        ("text", "already has"),
        ("values", "means something to torch"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path, grown_from, pack, network, name, message):
    with pytest.raises(ConfigError, match=message):
        register_embedding(name, network, pack, out=tmp_path / "o", model=grown_from)

    assert not (tmp_path / "o").exists()


def nan(pictures):
    return np.full((len(pictures), 5), np.nan)


def constant(pictures):
    return np.ones((len(pictures), 5))


def changing(pictures):
    return np.ones((len(pictures), 5 + int(np.asarray(pictures[0]).mean()) % 3))


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (nan, FourMError, "NaN"),
        (constant, FourMError, "same vector"),
        (changing, ShapeError, "width"),
    ],
)
def test_useless_vectors_are_refused_at_once(tmp_path, grown_from, pack, network, error, message):
    with pytest.raises(error, match=message):
        register_embedding("net", network, pack, out=tmp_path / "o", model=grown_from)

    assert not list(tmp_path.rglob("shard-*"))


def test_a_nan_in_the_middle_names_its_photo_and_loses_nothing(tmp_path, grown_from, pack, network):
    asked = []

    def net(pictures, *, broken=True):
        asked.append(len(pictures))
        vectors = network(pictures)
        for row, picture in zip(vectors, pictures, strict=True):
            if broken and picture.size == (61, 40):
                row[:] = np.nan
        return vectors

    folder = tmp_path / "photos"
    shutil.copytree(pack / "images", folder)
    Image.new("RGB", (61, 40), "red").save(folder / "zz.png")

    with pytest.raises(FourMError, match=r"photo 'zz\.png'.*NaN"):
        register_embedding("net", net, folder, out=tmp_path / "o", model=grown_from, **QUICK)


@pytest.mark.parametrize("count", [0, 10])
def test_too_few_photos_are_refused(tmp_path, grown_from, network, count):
    for i in range(count):
        photo(i).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no photo")

    with pytest.raises(ConfigError, match="expected photos" if count == 0 else "at least 24"):
        register_embedding("net", network, tmp_path, out=tmp_path / "o", model=grown_from)


def test_a_folder_of_something_else_is_not_touched(tmp_path, grown_from, pack, network):
    (tmp_path / "letter.txt").write_text("mine")

    with pytest.raises(ConfigError, match="holds other things"):
        register_embedding("net", network, pack, out=tmp_path, model=grown_from)


def test_a_folder_of_other_photos_is_not_gone_on_with(added, grown_from, tmp_path, network):
    photo(0).save(tmp_path / "a.png")

    with pytest.raises(ConfigError, match="begun with another sources"):
        register_embedding("net", network, tmp_path, out=added.folder, model=grown_from, **QUICK)


def test_an_unknown_option_is_refused(tmp_path, grown_from, pack, network):
    with pytest.raises(ConfigError, match=r"got 'stepz'.*steps"):
        register_embedding("net", network, pack, out=tmp_path, model=grown_from, stepz=3)
