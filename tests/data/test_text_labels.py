"""Texts get vectors from words, in the form of labels; labels are read from disk where they lie."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fourm_lite.cli import main
from fourm_lite.data.label_rows import LabelRows, mapped, read_labels
from fourm_lite.data.text_labels import (
    CaptionVectors,
    regressed_apart,
    vectors_of_captions,
    vectors_of_texts,
)
from fourm_lite.errors import FourMError
from fourm_lite.io.files import write_npz
from fourm_lite.training.recipes import DataRecipe, read_samples

DOGS, SEA = [4.0, 0.0, 0.0], [0.0, 4.0, 0.0]


@pytest.fixture
def pack(tmp_path):
    """Photos (not on disk) with captions, and labels of two crops each."""
    said = [("a brown dog runs", DOGS), ("waves of the sea", SEA)] * 6
    rows = [
        {"id": f"p.{i}", "file": f"{i}.jpg", "captions": [text, text], "split": "train"}
        for i, (text, _) in enumerate(said)
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    values = np.array([[vector, [9.0, 9.0, 9.0]] for _, vector in said], dtype=np.float32)
    for number, part in enumerate((slice(0, 7), slice(7, 12))):
        ids = np.array([r["id"] for r in rows[part]])
        path = tmp_path / "labels" / "net" / f"shard-{number:05d}.npz"
        write_npz(path, {"ids": ids, "values": values[part]})
    return tmp_path


def test_a_text_gets_the_vector_of_its_words_at_the_length_of_photos():
    captions = ["a brown dog runs", "waves of the sea"] * 3
    said = CaptionVectors(captions, np.array([DOGS, SEA] * 3, dtype=np.float32), np.arange(6))

    dog, sea, nothing = vectors_of_texts(["brown dog", "sea", "xyz"], said)

    assert dog[0] > 3 > 1 > dog[1]
    assert sea[1] > 3 > 1 > sea[0]
    mean = said.vectors.mean(axis=0)
    assert np.linalg.norm(dog - mean) == pytest.approx(8**0.5, rel=1e-5)
    assert np.allclose(nothing, mean)


def test_a_second_opinion_turns_the_vector_and_keeps_its_length():
    said = CaptionVectors(
        ["a brown dog runs", "waves of the sea"] * 3,
        np.array([DOGS, SEA] * 3, dtype=np.float32),
        np.arange(6),
    )

    def sky_always(texts):
        return said.mean + np.array([[0.0, 0.0, 9.0]] * len(texts), dtype=np.float32)

    alone, mixed, other = (
        (vectors_of_texts(["dog"], said, opinion=sky_always, share=share)[0] - said.mean)
        / said.length
        for share in (0.0, 0.5, 1.0)
    )

    assert np.allclose(alone[2], 0.0, atol=1e-6)
    assert mixed[2] == pytest.approx(0.5**0.5, abs=1e-3)  # the two are at right angles
    assert np.allclose(other, [0.0, 0.0, 1.0], atol=1e-6)
    assert np.linalg.norm(mixed) == pytest.approx(1.0, rel=1e-4)


def test_a_caption_is_answered_by_a_regression_that_has_not_seen_its_photo():
    # Each photo has a word of its own beside the word of its kind; by heart, it would tell.
    kinds = [DOGS, SEA] * 5
    captions = [f"{'dog' if k is DOGS else 'sea'} own{i}" for i, k in enumerate(kinds)]
    rng = np.random.default_rng(0)
    own = rng.normal(size=(10, 3)).astype(np.float32)
    said = CaptionVectors(
        captions * 2, np.tile(np.array(kinds) + own, (2, 1)), np.tile(np.arange(10), 2)
    )

    apart = regressed_apart(said)
    seen = vectors_of_texts(captions, said) - said.mean
    near = (apart[:10] * said.directions()[:10]).sum(axis=1)

    assert near.mean() < (seen / said.length * said.directions()[:10]).sum(axis=1).mean()
    assert near.mean() > 0.3
    whole = vectors_of_captions(said, share=1.0)
    assert np.allclose((whole - said.mean) / said.length, said.directions(), atol=1e-5)


def test_vectors_are_spread_over_the_directions_of_photos():
    rng = np.random.default_rng(0)
    scales = np.array([8.0, 2.0, 1.0], dtype=np.float32)
    photos = rng.normal(size=(4000, 3)).astype(np.float32) * scales
    said = CaptionVectors(["x"] * 4000, photos, np.arange(4000))

    plain = np.array([[1.0, 1.0, 1.0]], np.float32) / 3**0.5
    same, half = said.whitened(plain, 0.0), said.whitened(plain, 0.5)

    assert np.array_equal(same, plain)
    # Directions are of unit length, so their spread is not `scales` but follows it.
    spreads = said.directions().std(axis=0)
    expected = plain[0] / spreads
    assert np.allclose(half[0], expected / np.linalg.norm(expected), atol=0.02)


def test_folds_need_photos():
    said = CaptionVectors(["a", "a"], np.zeros((2, 3), np.float32), np.array([0, 0]))
    with pytest.raises(FourMError, match="at least 5 photos"):
        regressed_apart(said)


def test_the_verb_writes_labels_that_a_source_can_read(pack, capsys):
    (pack / "texts.txt").write_text("a dog\nthe sea\n")
    words = f"net={pack / 'labels'}@{pack / 'captions.jsonl'}"

    with pytest.raises(SystemExit) as stopped:
        main(["pseudolabel", str(pack / "texts.txt"), "-o", str(pack / "t"), "--words", words])

    assert stopped.value.code == 0
    ids, values = read_labels(pack / "t", "net")
    assert len(ids) == 2
    assert values.shape == (2, 1, 3)
    assert values[:, 0].argmax(axis=1).tolist() == [0, 1]
    assert read_labels(pack / "t", "crop_settings")[1].shape == (2, 1, 5)


def test_the_verb_labels_the_captions_of_the_list_itself(pack, capsys):
    listed = str(pack / "captions.jsonl")
    words = f"net={pack / 'labels'}@{listed}"

    with pytest.raises(SystemExit) as stopped:
        main(["pseudolabel", listed, "-o", str(pack / "t"), "--words", words, "--share", "0.3"])

    assert stopped.value.code == 0
    ids, values = read_labels(pack / "t", "net")
    assert ids[:3] == ["p.0#0", "p.0#1", "p.1#0"]
    assert values[:, 0].argmax(axis=1).tolist() == [0, 0, 1, 1] * 6
    read = read_samples(
        DataRecipe(captions=pack / "captions.jsonl", labels=pack / "t", texts=True),
        {}, None, ["net"],
    )  # fmt: skip
    assert len(read) == 24


def test_a_share_of_a_model_needs_the_model(pack, capsys):
    (pack / "texts.txt").write_text("a dog\n")
    words = f"net={pack / 'labels'}@{pack / 'captions.jsonl'}"
    text, out = str(pack / "texts.txt"), str(pack / "t")

    with pytest.raises(SystemExit) as stopped:
        main(["pseudolabel", text, "-o", out, "--words", words, "--share", "0.3"])

    assert stopped.value.code != 0
    assert "--model" in capsys.readouterr().err


def test_a_model_says_its_part_of_texts_without_photos(tmp_path, capsys):
    rows = [
        {"id": str(i), "file": f"{i}.jpg", "captions": ["a dog", "grass"], "split": "train"}
        for i in range(6)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    values = np.random.default_rng(0).normal(size=(6, 1, 512)).astype(np.float32)
    ids = np.array([r["id"] for r in rows])
    name = "joint_global"
    write_npz(tmp_path / "labels" / name / "shard-00000.npz", {"ids": ids, "values": values})
    (tmp_path / "texts.txt").write_text(f"a dog on grass\n{'the sea ' * 40}\n")  # 48 are read
    words = f"{name}={tmp_path / 'labels'}@{tmp_path / 'list.jsonl'}"

    made = {}
    for share in ("0", "1"):
        out = tmp_path / f"t{share}"
        call = ["pseudolabel", str(tmp_path / "texts.txt"), "-o", str(out), "--words", words]
        with pytest.raises(SystemExit) as stopped:
            main([*call, "--model", "mini", "--share", share])
        assert stopped.value.code == 0
        made[share] = read_labels(out, name)[1][:, 0] - values.mean(axis=(0, 1))

    lengths = np.linalg.norm(list(made.values()), axis=-1)
    assert np.allclose(lengths[1], lengths[1][0], rtol=1e-3)
    assert not np.allclose(made["0"], made["1"])


@pytest.mark.parametrize("words", ["net", "net=labels", "=labels@list", "net=@list"])
def test_a_word_of_another_form_is_refused(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(["pseudolabel", str(tmp_path), "-o", str(tmp_path / "t"), "--words", words])

    assert stopped.value.code != 0
    assert "NAME=LABELS@LIST" in capsys.readouterr().err


def test_photos_without_captions_teach_no_words():
    with pytest.raises(FourMError, match="photos with captions"):
        CaptionVectors.read(None, "net", [])


def test_labels_are_read_row_by_row_in_the_order_asked_for(pack):
    wanted = ["p.11", "p.0", "p.7"]

    rows = LabelRows.read(pack / "labels", "net", wanted)

    assert rows.shape == (3, 2, 3)
    assert all(isinstance(shard, np.memmap) for shard in rows.shards)
    assert rows.at(0, 0).tolist() == SEA
    assert rows.at(1, 0).tolist() == DOGS
    assert rows.at(2, 1).tolist() == [9.0, 9.0, 9.0]


def test_labels_that_are_missing_are_named(pack):
    with pytest.raises(FourMError, match=r"labels 'other' in .*found \['net'\]"):
        LabelRows.read(pack / "labels", "other", [])
    with pytest.raises(FourMError, match=r"1 samples have no label 'net'.*'q'"):
        LabelRows.read(pack / "labels", "net", ["p.1", "q"])


def test_a_compressed_file_is_read_whole(tmp_path):
    values = np.arange(12.0).reshape(3, 4)
    np.savez_compressed(tmp_path / "x.npz", values=values)

    assert np.array_equal(mapped(tmp_path / "x.npz", "values"), values)
