from __future__ import annotations

import importlib.util
import io
import json

import pytest
import torch
from tiny_photos import COLOURS, picture, write_classes, write_list

from fourm_lite.data.shards import write_tar
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.finetune.pixels import PhotoStream, readable
from fourm_lite.photos.labelled import (
    few_shots,
    hold_out,
    read_labelled,
    read_splits,
    read_training,
)


def bytes_of(name: str, seed: int) -> bytes:
    out = io.BytesIO()
    picture(name, seed).save(out, "PNG")
    return out.getvalue()


def as_list(root):
    return write_list(root / "a")


def as_classes(root):
    return write_classes(root / "b", 15)


def as_split_classes(root):
    for split, count in (("train", 8), ("val", 3), ("test", 4)):
        write_classes(root / "c" / split, count)
    return root / "c"


def as_tar(root):
    files = []
    for name in COLOURS:
        for i in range(15):
            files += [(f"{name}{i}.png", bytes_of(name, i)), (f"{name}{i}.cls", name.encode())]
    write_tar(root / "d.tar", files)
    return root / "d.tar"


def as_tar_of_classes(root):
    files = [(f"{name}/{i}.png", bytes_of(name, i)) for name in COLOURS for i in range(15)]
    write_tar(root / "e.tar", files)
    return root / "e.tar"


def as_parquet(root):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"id": f"{n}{i}", "file": {"bytes": bytes_of(n, i)}, "label": n}
        for n in COLOURS
        for i in range(15)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "f.parquet")
    return root / "f.parquet"


FORMS = [as_list, as_classes, as_split_classes, as_tar, as_tar_of_classes, as_parquet]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_classes_and_splits_apart(tmp_path, form):
    splits = read_splits(form(tmp_path))

    parts = [p for p in (splits.train, splits.val, splits.test) if p is not None]
    ids = [photo.record.id for part in parts for photo in part.photos]
    assert all(part.classes == ("blue", "green", "red") for part in parts)
    assert len(ids) == len(set(ids)) == 45
    assert splits.train.photos[0].record.open_image().size == (24, 20)


def test_holding_out_takes_from_every_class_and_again_the_same(tmp_path):
    data = read_labelled(write_classes(tmp_path / "x", 10))

    train, val = hold_out(data, 0.2)

    assert train.counts.tolist() == [8, 8, 8]
    assert val.counts.tolist() == [2, 2, 2]
    assert hold_out(data, 0.2)[1].fingerprint == val.fingerprint


def test_a_class_with_one_photo_keeps_it_and_is_told_of(tmp_path):
    root = write_classes(tmp_path / "x", 4)
    for path in sorted((root / "red").iterdir())[1:]:
        path.unlink()

    splits = read_splits(root)

    assert splits.train.counts.tolist() == [3, 3, 1]
    assert any("one training photo only: red" in note for note in splits.notes)


def test_one_photo_in_every_class_cannot_be_held_out(tmp_path):
    root = write_classes(tmp_path / "x", 1)

    with pytest.raises(FourMError, match="every class has one photo"):
        read_splits(root)


def relabelled(root, change):
    rows = [json.loads(line) for line in (root / "labels.jsonl").read_text().splitlines()]
    for row in rows:
        change(row)
    (root / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.mark.parametrize("name", ["trainval", ""])
def test_training_photos_are_never_those_of_another_split(tmp_path, name):
    root = relabelled(
        write_list(tmp_path / "x", val=0),
        lambda row: row.update(split=name if row["split"] == "train" else "test"),
    )

    assert len(read_training(root)) == len(read_splits(root).train) + len(read_splits(root).val)
    assert {photo.record.split for photo in read_training(root).photos} == {name}


def test_a_source_of_other_splits_alone_trains_nothing(tmp_path):
    root = write_list(tmp_path / "x", train=0)

    for read in (read_training, read_splits):
        with pytest.raises(FourMError, match="no photos to train on"):
            read(root)


def test_photos_of_a_split_that_is_not_read_are_counted(tmp_path):
    root = relabelled(
        write_list(tmp_path / "x"),
        lambda row: row.update(split={"val": "dev"}.get(row["split"], row["split"])),
    )

    assert any(note.startswith("9 photos of other splits") for note in read_splits(root).notes)


def test_folders_beside_those_of_splits_are_no_classes(tmp_path):
    root = as_split_classes(tmp_path)
    (root / "__MACOSX" / "red").mkdir(parents=True)
    assert read_splits(root).train.classes == ("blue", "green", "red")

    (root / "unlabelled").mkdir()

    with pytest.raises(FourMError, match="others beside them \\(unlabelled\\)"):
        read_splits(root)


def test_the_class_0_of_a_tar_is_a_class(tmp_path):
    files = []
    for number, name in enumerate(COLOURS):
        for i in range(4):
            label = json.dumps({"label": number}).encode()
            files += [(f"a/{name}{i}.png", bytes_of(name, i)), (f"a/{name}{i}.json", label)]
    write_tar(tmp_path / "n.tar", files)

    assert read_labelled(tmp_path / "n.tar").classes == ("0", "1", "2")


def test_one_list_of_labels_makes_all_splits_of_several(tmp_path):
    def change(row):
        if row["split"] == "train":
            row["label"] = [row["label"]]

    splits = read_splits(relabelled(write_list(tmp_path / "x"), change))

    assert splits.train.multi_label
    assert splits.val.multi_label
    assert splits.test.multi_label


def test_few_shots_are_so_many_of_each_class_and_depend_on_the_seed(tmp_path):
    data = read_labelled(write_classes(tmp_path / "x", 6))

    drawn = [few_shots(data, 2, seed) for seed in (0, 0, 1)]

    assert drawn[0].counts.tolist() == [2, 2, 2]
    assert drawn[0].fingerprint == drawn[1].fingerprint != drawn[2].fingerprint


def test_several_labels_a_photo_become_a_row_of_zeros_and_ones(tmp_path):
    picture("red", 0).save(tmp_path / "p.png")
    rows = [{"id": str(i), "file": "p.png", "label": x} for i, x in enumerate((["a", "b"], ["c"]))]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    data = read_labelled(tmp_path / "l.jsonl")

    assert data.multi_label
    assert data.labels.tolist() == [[1, 1, 0], [0, 0, 1]]


def test_photos_without_a_label_are_listed_and_a_list_without_labels_is_refused(tmp_path):
    root = write_list(tmp_path / "x")
    lines = [json.loads(line) for line in (root / "labels.jsonl").read_text().splitlines()]
    del lines[0]["label"]
    (root / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))

    data = read_labelled(root)

    assert [(s.id, s.why) for s in data.skipped] == [("red/0", "it has no label")]
    bare = [{k: v for k, v in line.items() if k != "label"} for line in lines]
    (root / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in bare))
    with pytest.raises(FourMError, match=r"none of the 45 photos .* has a label"):
        read_labelled(root)


def test_photos_that_cannot_be_read_are_listed_and_none_at_all_is_an_error(tmp_path):
    root = write_classes(tmp_path / "x", 2)
    (root / "red" / "0.png").write_bytes(b"not a picture")
    (root / "blue" / "1.png").write_bytes((root / "blue" / "1.png").read_bytes()[:60])

    data = readable(read_labelled(root))

    assert len(data) == 4
    assert sorted(s.id for s in data.skipped) == ["blue/1", "red/0"]
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(FourMError, match="none of 6 photos can be read"):
        readable(read_labelled(root))


def test_a_label_that_training_did_not_know_is_named(tmp_path):
    data = write_classes(tmp_path / "x", 2)

    with pytest.raises(ConfigError, match="'red', which is none of the 2 known classes"):
        read_labelled(data, classes=("blue", "green"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nothing", "found none at"),
        (lambda root: root, "neither labels.jsonl nor folders"),
        (lambda root: write_classes(root / "x", 0), "holds no photos"),
    ],
)
def test_a_place_without_photos_is_refused(tmp_path, make, message):
    with pytest.raises(FourMError, match=message):
        read_labelled(make(tmp_path))


def test_one_class_is_not_enough(tmp_path):
    root = write_classes(tmp_path / "x", 3)
    for name in ("red", "green"):
        for path in (root / name).iterdir():
            path.unlink()

    with pytest.raises(FourMError, match="at least two"):
        read_splits(root)


def test_a_batch_depends_on_its_step_alone(tmp_path):
    data = read_labelled(write_classes(tmp_path / "x", 6))
    stream = PhotoStream(data=data, size=(16, 16), batch_size=4)

    late, early = stream.batch(7), stream.batch(2)

    assert torch.equal(stream.batch(2).pixels, early.pixels)
    assert torch.equal(stream.batch(7).labels, late.labels)
    assert early.pixels.shape == (4, 3, 16, 16)


def test_an_epoch_shows_every_photo_once_and_balance_the_rare_ones_more_often(tmp_path):
    root = write_classes(tmp_path / "x", 12)
    for path in sorted((root / "red").iterdir())[3:]:
        path.unlink()
    data = read_labelled(root)
    plain = PhotoStream(data=data, size=(16, 16), batch_size=9)
    even = PhotoStream(data=data, size=(16, 16), batch_size=9, balanced=True)

    def counts(stream, steps):
        labels = torch.cat([stream.batch(step).labels for step in range(steps)])
        return torch.bincount(labels, minlength=3)

    assert counts(plain, 3).tolist() == [12, 12, 3]
    assert counts(even, 12)[2] > 20


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_augmentation_by_timm_is_repeatable_and_leaves_the_global_state(tmp_path):
    import random

    from fourm_lite.finetune.pixels import PhotoAugment

    data = read_labelled(write_classes(tmp_path / "x", 2))
    augment = PhotoAugment(auto="rand-m9-mstd0.5-inc1")
    stream = PhotoStream(data=data, size=(16, 16), batch_size=4, augment=augment)
    before = random.getstate()

    first = stream.batch(1).pixels

    assert torch.equal(first, stream.batch(1).pixels)
    assert random.getstate() == before


@pytest.mark.parametrize("policy", ["augmix-m5", "rnd-m9", "rand-x9", "rand-m9.5", "v1"])
def test_a_policy_that_timm_lacks_is_refused_before_the_run(policy):
    from fourm_lite.finetune.pixels import PhotoAugment

    with pytest.raises(ConfigError, match=r"rand-m9-mstd0\.5-inc1"):
        PhotoAugment(auto=policy)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("policy", ["rand", "rand-m9-n3-p0.4-mmax12-tweights", "v0r", "3a-mstd1"])
def test_a_policy_that_passes_is_one_of_timm(tmp_path, policy):
    from fourm_lite.finetune.pixels import PhotoAugment

    data = read_labelled(write_classes(tmp_path / "x", 1))
    augment = PhotoAugment(auto=policy)

    assert len(PhotoStream(data=data, size=(16, 16), batch_size=1, augment=augment).batch(0)) == 1
