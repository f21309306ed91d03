"""A photo that was replaced: labels, tokens and vectors are made of the one that is there."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny_shards import write_tokens

from fourm_lite.data.label_rows import LabelRows, read_labels
from fourm_lite.data.labellers import EdgeLabeller, MetadataLabeller, PaletteLabeller, given_maps
from fourm_lite.data.pseudolabel import LabelRun, pseudolabel
from fourm_lite.data.shards import CROPS, aligned, read_tokens
from fourm_lite.data.tokenized import TokenJob, parts_of_labels, parts_of_photos, tokenize_parts
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.photos.records import read_records
from fourm_lite.tokenization.load import load_tokenizer

RUN = LabelRun(shard_size=2)


def paint(path, seed, size=(60, 80)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(4):
        paint(tmp_path / "photos" / f"{i}.png", i)
    return tmp_path / "photos"


class Counted(MetadataLabeller):
    """Counts the photos that it is shown."""

    seen = 0

    def __call__(self, cuts):
        type(self).seen += len(cuts.records)
        return super().__call__(cuts)


@pytest.mark.parametrize("size", [(60, 80), (90, 40)])
def test_a_run_that_goes_on_labels_a_replaced_photo_anew(photos, tmp_path, size):
    pseudolabel(read_records(photos), [Counted(), EdgeLabeller()], tmp_path / "out", run=RUN)
    paint(photos / "3.png", 9, size)
    Counted.seen = 0

    pseudolabel(read_records(photos), [Counted(), EdgeLabeller()], tmp_path / "out", run=RUN)
    pseudolabel(read_records(photos), [Counted(), EdgeLabeller()], tmp_path / "new", run=RUN)

    assert Counted.seen == 2 + 4  # the shard of the photo alone, then all of the other folder
    for name in ("metadata", "canny_edge", CROPS):
        went_on, anew = (read_labels(tmp_path / d, name)[1] for d in ("out", "new"))
        np.testing.assert_array_equal(went_on, anew)


def test_labels_that_would_stay_behind_are_named(photos, tmp_path):
    pseudolabel(read_records(photos), [MetadataLabeller(), PaletteLabeller()], tmp_path / "o")
    paint(photos / "3.png", 9)

    with pytest.raises(ConfigError, match=r"label 'color_palette' .* was made"):
        pseudolabel(read_records(photos), [MetadataLabeller()], tmp_path / "o")


def test_labels_of_before_contents_were_noted_go_on(photos, tmp_path):
    pseudolabel(read_records(photos), [MetadataLabeller()], tmp_path / "o", run=RUN)
    for path in (tmp_path / "o").glob("*/shard-*.npz"):
        with np.load(path) as data:
            kept = {name: data[name] for name in ("ids", "values")}
        np.savez(path, **kept)
    Counted.seen = 0

    pseudolabel(read_records(photos), [MetadataLabeller()], tmp_path / "o", run=RUN)

    assert Counted.seen == 0


def test_labels_go_on_where_photos_are_gone(photos, tmp_path):
    records = read_records(photos)
    pseudolabel(records, [MetadataLabeller()], tmp_path / "o", run=RUN)
    for record in records:
        record.image.unlink()

    pseudolabel(records, [MetadataLabeller()], tmp_path / "o", run=RUN)


@pytest.mark.parametrize("of", ["photos", "labels"])
def test_tokens_of_a_replaced_photo_are_made_anew(photos, tmp_path, of):
    tokenizer = load_tokenizer("rgb_mini" if of == "photos" else "edge_mini")
    job = TokenJob(tokenizer, "tok", "" if of == "photos" else "canny_edge")

    def tokens(name):
        records = read_records(photos)
        parts = parts_of_photos(records, RUN)
        if of == "labels":
            pseudolabel(records, [EdgeLabeller()], tmp_path / f"labels_{name}", run=RUN)
            parts = parts_of_labels(tmp_path / f"labels_{name}")
        tokenize_parts(parts, [job], tmp_path / name)
        return read_tokens(tmp_path / name, "tok")[1]

    before = tokens("out")
    kept = (tmp_path / "out" / "tok" / "shard-00000.tar").stat().st_mtime_ns
    paint(photos / "3.png", 9)

    after = tokens("out")

    np.testing.assert_array_equal(after, tokens("new"))
    assert (after[3] != before[3]).any()
    assert (tmp_path / "out" / "tok" / "shard-00000.tar").stat().st_mtime_ns == kept


def test_values_under_one_id_twice_are_refused(tmp_path):
    ids, values = ["a", "b", "a"], np.zeros((3, 1, 2), np.int64)
    write_tokens(tmp_path / "t", "tok", ids, values)
    (tmp_path / "l" / "x").mkdir(parents=True)
    np.savez(tmp_path / "l" / "x" / "shard-00000.npz", ids=np.array(ids), values=values)
    np.savez(tmp_path / "maps.npz", ids=np.array(ids), maps=np.zeros((3, 4, 4), np.uint8))
    np.savez(tmp_path / "short.npz", ids=np.array(ids[:2]), maps=np.zeros((3, 4, 4), np.uint8))

    for read in (
        lambda: aligned((read_tokens(tmp_path / "t", "tok")[0], values), ["a"]),
        lambda: LabelRows.read(tmp_path / "l", "x", ["a"]),
        lambda: given_maps(tmp_path / "maps.npz"),
    ):
        with pytest.raises(FourMError, match="id 'a' stands twice"):
            read()
    with pytest.raises(FourMError, match="as many ids as maps"):
        given_maps(tmp_path / "short.npz")


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "no picture": lambda path: path.write_bytes(b"\xff\xd8\xffnothing"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("number", [0, 3])
def test_a_photo_that_cannot_be_read_is_listed_and_the_others_are_labelled(
    photos, tmp_path, damage, number
):
    records = read_records(photos)
    pseudolabel(records, [MetadataLabeller(), EdgeLabeller()], tmp_path / "whole", run=RUN)
    DAMAGE[damage](photos / f"{number}.png")

    made = pseudolabel(records, [MetadataLabeller()], tmp_path / "out", run=RUN)
    again = pseudolabel(records, [MetadataLabeller(), EdgeLabeller()], tmp_path / "out", run=RUN)

    assert [s.uri for s in made] == [str(number)]
    assert "cannot" in made[0].reason
    assert again == made
    kept = [str(i) for i in range(4) if i != number]
    for name in ("metadata", "canny_edge", CROPS):
        ids, values = read_labels(tmp_path / "out", name)
        assert ids == kept
        whole = read_labels(tmp_path / "whole", name)
        np.testing.assert_array_equal(values, aligned(whole, kept))


def test_a_photo_that_came_back_is_labelled_too(photos, tmp_path):
    records = read_records(photos)
    (photos / "1.png").rename(tmp_path / "away.png")
    pseudolabel(records, [MetadataLabeller()], tmp_path / "out", run=RUN)
    (tmp_path / "away.png").rename(photos / "1.png")

    with pytest.raises(ConfigError, match="label 'metadata'"):
        pseudolabel(records, [EdgeLabeller()], tmp_path / "out", run=RUN)
    assert pseudolabel(records, [MetadataLabeller()], tmp_path / "out", run=RUN) == ()
    assert read_labels(tmp_path / "out", "metadata")[0] == ["0", "1", "2", "3"]


def test_labels_of_one_shard_are_of_the_same_photos(photos, tmp_path):
    records = read_records(photos)
    pseudolabel(records, [MetadataLabeller()], tmp_path / "out", run=RUN)
    (photos / "1.png").unlink()

    with pytest.raises(FourMError, match=r"cannot be read any more: '1'"):
        pseudolabel(records, [EdgeLabeller()], tmp_path / "out", run=RUN)


def test_a_shard_of_which_no_photo_can_be_read_is_left_out_and_all_of_them_are_refused(
    photos, tmp_path
):
    records = read_records(photos)
    for number in (0, 1):
        (photos / f"{number}.png").unlink()
    job = TokenJob(load_tokenizer("rgb_mini"), "rgb")

    made = pseudolabel(records, [MetadataLabeller()], tmp_path / "out", run=RUN)

    assert [s.uri for s in made] == ["0", "1"]
    for name, parts in {
        "l": parts_of_labels(tmp_path / "out", records), "p": parts_of_photos(records, RUN)
    }.items():  # fmt: skip
        assert tokenize_parts(parts, [job], tmp_path / name) == 2
        assert read_tokens(tmp_path / name, "rgb")[0] == ["2", "3"]
    for number in (2, 3):
        (photos / f"{number}.png").unlink()
    with pytest.raises(FourMError, match="none of 4 photos can be read"):
        pseudolabel(records, [MetadataLabeller()], tmp_path / "none", run=RUN)
