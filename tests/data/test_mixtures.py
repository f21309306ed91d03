"""Mixtures: a list that names photos, the same picture each time, and clear refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from verbs import exit_code

from fourm_lite.data.label_rows import read_labels
from fourm_lite.data.photo_mixing import Mixing, mixtures
from fourm_lite.data.shards import read_tokens
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.crops import CropPolicy
from fourm_lite.photos.records import Record, read_records

COLOURS = ((250, 0, 0), (0, 250, 0), (0, 0, 250))
POLICY = CropPolicy(size=32)


@pytest.fixture
def photos(tmp_path):
    """Three photos of one colour each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (60, 48), colour).save(folder / f"{i}.png")
    return folder


def colours_of(image):
    """Each pixel's colour, all of them once."""
    return {tuple(int(v) for v in c) for c in np.unique(np.asarray(image).reshape(-1, 3), axis=0)}


def test_a_blend_has_the_share_that_its_line_tells(photos, tmp_path):
    out = tmp_path / "lists" / "mixed.jsonl"

    assert (
        exit_code("mix-photos", photos, "--count", 9, "-o", out, "--blended", 1, "--size", 32) == 0
    )

    for record, line in zip(read_records(out), out.read_text().splitlines(), strict=True):
        row = json.loads(line)
        share, files = row["mixed_with"]["share"], (row["file"], row["mixed_with"]["file"])
        first, second = (int(f.removesuffix(".png")[-1]) for f in files)
        wanted = (1 - share) * np.array(COLOURS[first]) + share * np.array(COLOURS[second])
        image = record.open_image()
        assert first != second
        assert image.size == (32, 32)
        assert np.abs(np.asarray(image).astype(float) - wanted).max() <= 1


def test_a_piece_lies_in_its_box_and_nowhere_else(photos):
    records = read_records(photos)

    for first, mix in mixtures(records, 12, Mixing(POLICY, blended=0.0)):
        image = mix.join(first.open_image())
        left, top, right, bottom = mix.box
        inside = np.zeros((32, 32), dtype=bool)
        inside[top:bottom, left:right] = True
        pixels = np.asarray(image)
        assert colours_of(pixels[inside]) == {COLOURS[int(mix.image.stem)]}
        assert colours_of(pixels[~inside]) == {COLOURS[int(first.id)]}
        assert 0.1 <= inside.mean() <= 0.7


def test_captions_alone_cannot_be_mixed():
    with pytest.raises(ConfigError, match="needs two photos, the list has 0"):
        list(mixtures([Record("a", b""), Record("b", b"")], 1, Mixing(POLICY)))


def test_more_mixtures_begin_with_the_same_ones(photos):
    records = read_records(photos)

    few, many = (list(mixtures(records, n, Mixing(POLICY, seed=4))) for n in (7, 21))

    assert many[:7] == few
    assert sorted(r.id for r, _ in many) == sorted("012" * 7)
    assert list(mixtures(records, 7, Mixing(POLICY, seed=5))) != few


def test_labels_and_tokens_are_made_of_the_mixture(photos, tmp_path):
    out, labels, tokens = (tmp_path / n for n in ("mixed.jsonl", "labels", "tokens"))
    exit_code("mix-photos", photos, "--count", 3, "-o", out)

    assert exit_code("pseudolabel", out, "-o", labels, "--labels", "color_palette") == 0
    assert exit_code("tokenize", labels, "--photos", out, "-t", "rgb_mini", "-o", tokens) == 0

    records = read_records(out, split="train")
    ids, palettes = read_labels(labels, "color_palette")
    assert ids == read_tokens(tokens, "tok_rgb_mini")[0] == [r.id for r in records]
    for record, rows in zip(records, palettes[:, 0], strict=True):
        named = {tuple(int(v) for v in c) for c in rows if c[0] >= 0}
        assert named & colours_of(record.open_image())


def test_ids_tell_mixtures_of_other_photos_apart(photos, tmp_path):
    ids = []
    for seed in (0, 1):
        out = tmp_path / f"{seed}.jsonl"
        exit_code("mix-photos", photos, "--count", 2, "-o", out, "--seed", seed)
        ids += [r.id for r in read_records(out)]

    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": 1.5}, "share within 0..1"),
        ({"share": "much"}, "says no mixture"),
        ({"box": [0, 0, 40, 8]}, "box within 32x32"),
        ({"box": [4, 4, 4, 8]}, "box within 32x32"),
        ({"crops": [[0, 0, 9, 9, 0]]}, "says no mixture"),
        ({"crops": [[0, 0, 9]]}, "says no mixture"),
        ({"size": None}, "says no mixture"),
        ({"file": 3}, "says no mixture"),
    ],
)
def test_a_line_that_says_no_mixture_is_named(photos, tmp_path, change, said):
    out = tmp_path / "mixed.jsonl"
    exit_code("mix-photos", photos, "--count", 1, "-o", out, "--size", 32)
    row = json.loads(out.read_text())
    row["mixed_with"] |= change
    out.write_text(json.dumps(row) + "\n")

    with pytest.raises(FourMError, match=said):
        read_records(out)


def test_a_crop_that_leaves_its_photo_is_told_with_the_mixture(photos, tmp_path):
    out = tmp_path / "mixed.jsonl"
    exit_code("mix-photos", photos, "--count", 1, "-o", out)
    row = json.loads(out.read_text())
    row["mixed_with"]["crops"][1] = [0, 0, 90, 90, 0]
    out.write_text(json.dumps(row) + "\n")

    with pytest.raises(FourMError, match="leaves the picture of 48x60"):
        read_records(out)[0].open_image()


def test_a_mixture_is_not_mixed_again(photos, tmp_path):
    out = tmp_path / "mixed.jsonl"
    exit_code("mix-photos", photos, "--count", 2, "-o", out)

    with pytest.raises(ConfigError, match="is a mixture itself"):
        list(mixtures(read_records(out), 1, Mixing(POLICY)))


def test_a_second_photo_that_is_gone_is_told_with_the_mixture(photos, tmp_path):
    out = tmp_path / "mixed.jsonl"
    exit_code("mix-photos", photos, "--count", 1, "-o", out)
    (record,) = read_records(out)
    record.mix.image.resolve().unlink()

    with pytest.raises(FourMError, match=f"cannot read the picture of '{record.id}'"):
        record.open_image()


def test_what_is_there_is_not_written_over_and_other_endings_are_refused(photos, tmp_path, capsys):
    out = tmp_path / "mixed.jsonl"
    out.write_text("mine\n")

    assert exit_code("mix-photos", photos, "--count", 1, "-o", out) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_text() == "mine\n"
    assert exit_code("mix-photos", photos, "--count", 1, "-o", tmp_path / "mixed.txt") == 2
    assert "is a .jsonl file" in capsys.readouterr().err


def test_photos_without_files_are_refused(tmp_path):
    data = (tmp_path / "a.png", tmp_path / "b.png")
    for path in data:
        Image.new("RGB", (40, 40)).save(path)
    records = [Record("a", data[0]), Record("b", data[1].read_bytes())]

    with pytest.raises(ConfigError, match="'b' comes with its list"):
        list(mixtures(records, 2, Mixing(POLICY)))
