"""Properties of every reader: no row is dropped without being listed, ids are unique or refused."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fourm_lite.errors import FourMError
from fourm_lite.evaluate.caption_sets import CaptionPack
from fourm_lite.modalities import camera_files
from fourm_lite.photos.item import Item, Skipped
from fourm_lite.photos.labelled import read_labelled
from fourm_lite.photos.records import list_records, read_records
from fourm_lite.photos.sources import open_sources, read_uri

GOOD, BAD = 4, 3


@pytest.fixture(autouse=True)
def _no_extras(monkeypatch):
    """Photos of phones and cameras are listed, as without the extras that read them."""
    monkeypatch.setattr(camera_files, "find_spec", lambda name: None)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def pack(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def a_folder(root):
    for i, ending in enumerate(("png", "PGM", "apng", "pnm")):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        (root / "ab"[i % 2] / f"{i}.{ending}").write_bytes(png(i))
    for name in ("a/x.heic", "b/y.DNG", "b/z.cr2"):
        (root / name).write_bytes(b"raw")
    return root


def a_tar(root):
    files = [(f"2024.{i:02d}.png" if i % 2 else f"{i}.png", png(i)) for i in range(GOOD)]
    files = [f for n, d in files for f in ((n, d), (n.replace("png", "cls"), n[-5:-4].encode()))]
    return pack(root / "s.tar", [*files, *((f"{i}.nef", b"raw") for i in range(BAD))])


def list_of(root, rows):
    for i in range(GOOD):
        (root / f"{i}.png").write_bytes(png(i))
    good = [
        json.dumps({"id": f"p{i}", "file": f"{i}.png", "label": i % 2, "captions": ["a", None]})
        for i in range(GOOD)
    ]
    lines = [text.encode() for text in good]
    (root / "l.jsonl").write_bytes(b"\n".join([*rows, *lines, b""]))
    return root / "l.jsonl"


def a_list_with_text_that_is_no_json(root):
    return list_of(root, [b"{half", b'{"id": "caf\xe9", "file": "0.png"}', b"[1]"])


def a_list_with_characters_that_are_none(root):
    rows = [b'{"id": "a\\ud83d", "file": "0.png"}', b'{"id": "b", "file": "0\\u0000.png"}']
    return list_of(root, [*rows, b'{"file": "0.png", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"])


def a_list_with_values_of_no_kind(root):
    rows = [b'{"id": "a", "file": null}', b'{"id": "b", "file": {"path": "gone.png"}}', b'"x"']
    return list_of(root, rows)


def a_parquet(root):
    (root / "3.png").write_bytes(png(3))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": png(i), "path": None} for i in range(3)]
    images += [{"bytes": None, "path": "3.png"}, None, {"bytes": None, "path": "gone.png"}]
    images += [{"bytes": None, "path": None}]
    table = {
        "id": [f"p{i}" for i in range(7)],
        "image": pa.array(images, kind),
        "label": ["a", "b", "a", "b", "a", "b", "a"],
    }
    parquet.write_table(pa.table(table), root / "p.parquet")
    return root / "p.parquet"


def a_lance_table(root):
    import lance

    made = lance.write_dataset(parquet.read_table(a_parquet(root)), root / "t.lance")
    assert made.count_rows() == GOOD + BAD
    return (root / "t.lance").rename(root / "my phötos.lance")


SOURCES = [
    a_folder,
    a_tar,
    a_list_with_text_that_is_no_json,
    a_list_with_characters_that_are_none,
    a_list_with_values_of_no_kind,
    a_parquet,
    a_lance_table,
]
every_source = pytest.mark.parametrize("source", SOURCES)


@every_source
def test_no_reader_drops_a_row_without_listing_it(tmp_path, source):
    place = source(tmp_path)

    found = list(open_sources([place]))
    listing = list_records(place)
    labelled = read_labelled(place)

    items = [one for one in found if isinstance(one, Item)]
    assert (len(items), len(found) - len(items)) == (GOOD, BAD)
    assert (len(listing.records), len(listing.skipped)) == (GOOD, BAD)
    assert (len(labelled), len(labelled.skipped)) == (GOOD, BAD)
    assert len(labelled.classes) == (4 if source is a_tar else 2)
    assert all(s.reason for s in listing.skipped)


@every_source
def test_every_door_reads_the_same_bytes_under_ids_of_its_own(tmp_path, source):
    place = source(tmp_path)

    items = [one for one in open_sources([place]) if isinstance(one, Item)]
    records = read_records(place)
    photos = read_labelled(place).photos

    assert [r.read() for r in records] == [i.read() for i in items]
    assert sorted(i.read() for i in items) == sorted(png(i) for i in range(GOOD))
    assert [read_uri(i.uri) for i in items] == [i.read() for i in items]
    assert sorted(p.record.read() for p in photos) == sorted(r.read() for r in records)
    for ids in ([i.id for i in items], [r.id for r in records], [p.record.id for p in photos]):
        assert len(set(ids)) == GOOD


def test_rows_of_one_photo_are_one_record_with_all_captions(tmp_path):
    lines = [{"id": f"p{i % 2}", "file": f"{i % 2}.png", "caption": f"words {i}"} for i in range(4)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    first, second = read_records(tmp_path / "c.jsonl")

    assert first.captions == ("words 0", "words 2")
    assert second.captions == ("words 1", "words 3")


def test_neighbours_that_say_one_photo_are_one_item_of_an_index(tmp_path):
    lines = [{"id": f"p{i // 3}", "file": f"{i // 3}.png", "caption": f"{i}"} for i in range(6)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    items = list(open_sources([tmp_path / "c.jsonl"]))

    assert [(i.id, i.columns["captions"]) for i in items] == [
        ("p0", ["0", "1", "2"]),
        ("p1", ["3", "4", "5"]),
    ]


@pytest.mark.parametrize("ids", [["p0", "p0", "p1"], ["p0#0", "p0#1", "p1#0"]])
def test_captions_one_a_line_are_those_of_one_photo_of_a_gallery(tmp_path, ids):
    lines = [
        {"id": name, "file": f"{i // 2}.png", "captions": f"words {i}", "split": "test"}
        for i, name in enumerate(ids)
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    pack = CaptionPack.read(tmp_path, "test")

    assert len(pack.photos) == 2
    assert pack.captions == ("words 0", "words 1", "words 2")
    assert pack.owner.tolist() == [0, 0, 1]


@pytest.mark.parametrize("read", [read_records, read_labelled])
def test_two_photos_under_one_id_are_refused(tmp_path, read):
    lines = [{"id": "0", "file": f"{c}/0.png", "label": c} for c in ("cat", "dog")]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    with pytest.raises(FourMError, match="id '0' stands for two photos"):
        read(tmp_path / "l.jsonl")


def test_ids_that_repeat_in_other_splits_alone_are_read_split_by_split(tmp_path):
    rows = [
        {"id": str(i), "file": f"{s}/{i}.png", "label": "ab"[i], "split": s}
        for s in ("train", "test")
        for i in range(2)
    ]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert len(read_records(tmp_path / "l.jsonl", split="train")) == 2
    assert len(read_labelled(tmp_path / "l.jsonl", split="test")) == 2
    with pytest.raises(FourMError, match="two photos"):
        read_records(tmp_path / "l.jsonl")


@pytest.mark.parametrize(
    ("captions", "left"),
    [
        (["a dog", None], ("a dog",)),
        (["a dog", "", "  "], ("a dog",)),
        (None, ()),
        (float("nan"), ()),
        ([{"raw": "a dog"}], None),
        (5, None),
    ],
)
def test_what_is_no_text_becomes_no_caption(tmp_path, captions, left):
    row = {"id": "1", "file": "x.jpg", "captions": captions}
    good = {"id": "2", "file": "y.jpg", "captions": "a cat"}
    (tmp_path / "c.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(good)}\n")

    listing = list_records(tmp_path / "c.jsonl")

    told = {r.id: r.captions for r in listing.records}
    assert told == {"2": ("a cat",)} | ({} if left is None else {"1": left})
    assert len(listing.skipped) == (left is None)


@pytest.mark.parametrize("split", [["train"], {"name": "train"}], ids=str)
def test_a_split_that_is_no_text_is_not_the_text_of_itself(tmp_path, split):
    rows = [{"file": "x.jpg", "split": split}, {"file": "y.jpg", "split": "train"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    listing = list_records(tmp_path / "c.jsonl")

    assert [r.split for r in listing.records] == ["train"]
    assert "no text" in listing.skipped[0].reason


@pytest.mark.parametrize("nothing", [None, float("nan"), "", [None]])
def test_a_label_that_says_nothing_is_no_class(tmp_path, nothing):
    labels = ["cat", "dog", nothing]
    rows = [{"id": str(i), "file": f"{i}.png", "label": x} for i, x in enumerate(labels)]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    data = read_labelled(tmp_path / "l.jsonl")

    assert data.classes == ("cat", "dog")
    assert [s.id for s in data.skipped] == ["2"]


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    rows = [{"id": str(i), "file": f"{i}.png", "label": i} for i in range(12)]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    data = read_labelled(tmp_path / "l.jsonl")

    assert data.classes == tuple(map(str, range(12)))
    assert data.labels.tolist() == list(range(12))


def test_no_class_of_a_folder_vanishes(tmp_path):
    root, store = tmp_path / "set", tmp_path / "store"
    for name in ("cat", "dog", "raw", "empty", "linked", ".cache", "deep/er"):
        (root / name).mkdir(parents=True)
    store.mkdir()
    for place in (root / "cat" / "1.png", root / "dog" / "1.pgm", store / "1.png"):
        place.write_bytes(png(0))
    (root / "deep" / "er" / "1.png").write_bytes(png(1))
    (root / "raw" / "1.heic").write_bytes(b"raw")
    (root / "lone.png").write_bytes(png(2))
    (root / ".cache" / "1.png").write_bytes(png(3))
    (root / "linked" / "batch").symlink_to(store, target_is_directory=True)
    (root / "linked" / "again").symlink_to(store, target_is_directory=True)

    data = read_labelled(root)

    assert data.classes == ("cat", "deep", "dog", "linked")
    listed = {s.id.rpartition(".")[0] or s.id for s in data.skipped}
    assert {"raw/1", "raw", "empty", "lone", "linked/batch"} <= {
        *listed,
        *map(str, data.skipped),
    } | {s.id for s in data.skipped}


def test_photos_that_differ_in_their_ending_alone_keep_it(tmp_path):
    for name in ("a/1.png", "a/1.jpg", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(0))

    data = read_labelled(tmp_path)

    assert [p.record.id for p in data.photos] == ["a/1.jpg", "a/1.png", "a/2", "b/1"]
    with pytest.raises(FourMError, match="two photos"):
        read_records(tmp_path)


def test_a_label_in_a_tar_is_that_of_cls_then_json_then_the_folder(tmp_path):
    files = [
        ("x/1.png", png(1)), ("x/1.txt", b"a photo"), ("x/1.cls", b"of cls"),
        ("x/2.png", png(2)), ("x/2.txt", b"a photo"), ("x/2.json", b'{"label": "of json"}'),
        ("x/3.png", png(3)), ("x/3.txt", b"a photo"), ("x/3.json", b'{"label": null}'),
        ("4.png", png(4)), ("4.txt", b"of txt"),
        ("5.input.jpg", png(5)), ("5.cls", b"five"),
        ("6.png", png(6)), ("6.mask.png", png(7)), ("6.cls", b"six"),
    ]  # fmt: skip

    data = read_labelled(pack(tmp_path / "t.tar", files))

    named = {p.record.id: data.classes[p.classes[0]] for p in data.photos}
    assert named == {
        "x/1": "of cls", "x/2": "of json", "x/3": "x", "4": "of txt", "5": "five", "6": "six",
    }  # fmt: skip
    assert [s.id for s in data.skipped] == ["t.tar::6.mask.png"]


def test_what_is_said_of_a_dotted_name_stays_with_it(tmp_path):
    files = [
        ("22.05.jpg", png(1)), ("22.05.txt", b"in May"),
        ("22.06.jpg", png(2)), ("22.06.txt", b"in June"), ("22.cls", b"3"),
    ]  # fmt: skip

    items = list(open_sources([pack(tmp_path / "t.tar", files)]))

    assert {i.id: dict(i.columns) for i in items} == {
        "t/22.05.jpg": {"caption": "in May", "label": 3},
        "t/22.06.jpg": {"caption": "in June", "label": 3},
    }


def test_a_text_is_cut_at_line_ends_alone(tmp_path):
    (tmp_path / "t.txt").write_bytes("one\u2028still one\x0b\r\ntwo\n".encode() + b"caf\xe9\n")

    listing = list_records(tmp_path / "t.txt")

    assert [r.captions for r in listing.records] == [("one\u2028still one",), ("two",)]
    assert len(listing.skipped) == 1


def test_names_with_colons_are_read_again(tmp_path):
    (tmp_path / "a::b").mkdir()
    (tmp_path / "a::b" / "c::0.png").write_bytes(png(0))
    pack(tmp_path / "a::b" / "s.tar", [("x::y.png", png(1))])

    items = list(open_sources([tmp_path]))

    assert [read_uri(i.uri) for i in items] == [i.read() for i in items] == [png(0), png(1)]


def test_a_folder_of_photos_may_be_called_as_a_table(tmp_path):
    (tmp_path / "my photos.lance").mkdir()
    (tmp_path / "my photos.lance" / "1.png").write_bytes(png(0))

    assert [i.id for i in open_sources([tmp_path / "my photos.lance"])] == ["1.png"]


def test_what_is_left_out_is_told(tmp_path, caplog):
    read_records(a_folder(tmp_path))

    told = [record.message for record in caplog.records]
    assert len(told) == BAD
    assert all("is not read; pip install" in line and "convert it" in line for line in told)


def test_a_source_hides_what_lies_in_it_and_nothing_else():
    cut = Skipped("/a/s.tar", "cut")

    assert cut.may_hide("/a/s.tar::1.jpg")
    assert not cut.may_hide("/a/s.tar2::1.jpg")
    assert Skipped("/a", "cannot be listed").may_hide("/a/b/1.jpg")
    assert Skipped("/a/l.jsonl:3", "is not JSON", "/a").may_hide("/a/1.jpg")
