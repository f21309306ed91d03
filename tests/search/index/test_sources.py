import io
import json
import os
import tarfile

import pyarrow as pa
import pytest
from pyarrow import parquet

from fourm_lite.errors import ConfigError
from fourm_lite.photos.item import Item, Skipped
from fourm_lite.photos.sources import open_sources, read_uri

PNG = b"\x89PNG..."


def split(stream):
    found = list(stream)
    items = [i for i in found if isinstance(i, Item)]
    return items, {s.uri: s.reason for s in found if isinstance(s, Skipped)}


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(kind, link=""):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, link
    return info


def test_a_folder_gives_its_pictures_in_order_and_lists_broken_links(hard_folder):
    folder, good, bad = hard_folder

    items, skipped = split(open_sources([folder]))

    linked = {"broken.jpg", "self.jpg"}
    assert sorted(i.id for i in items) == sorted({*good, *bad} - linked)
    assert skipped == {str(folder / name): "broken link" for name in linked}
    assert [i.id for i in items] == [i.id for i in split(open_sources([folder]))[0]]


def test_folders_that_link_to_each_other_are_walked_once(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir(), b.mkdir()
    (a / "x.jpg").write_bytes(b"1"), (b / "y.jpg").write_bytes(b"2")
    os.symlink(b, a / "to_b"), os.symlink(a, b / "to_a")

    items, skipped = split(open_sources([a]))

    assert [i.id for i in items] == ["to_b/y.jpg", "x.jpg"]
    assert not skipped


def test_a_name_that_is_no_utf8_is_spelled_out_and_still_read(tmp_path):
    with open(os.fsencode(str(tmp_path)) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"coffee")

    items, _ = split(open_sources([tmp_path]))

    assert items[0].id == "caf\\xe9.jpg"
    assert items[0].read() == b"coffee"


def test_a_shard_gives_samples_with_their_own_columns(tmp_path):
    shard = make_tar(
        tmp_path / "train-00.tar.gz",
        [
            ("a/1.jpg", PNG),
            ("a/1.txt", "été ".encode()),
            ("a/1.json", b'{"year": 1999, "id": 7}'),
            ("2.cls", b"3"),
            ("2.png", PNG),
            ("3.jpg", PNG),
            ("3.json", b"{broken"),
            ("4.left.jpg", PNG + b"l"),
            ("4.right.jpg", PNG + b"r"),
            ("5.txt", b"without a picture"),
        ],
        "w:gz",
    )

    items, skipped = split(open_sources([shard]))

    assert {i.id: dict(i.columns) for i in items} == {
        "train-00/a/1": {"caption": "été", "year": 1999, "id_": 7},
        "train-00/2": {"label": 3},
        "train-00/3": {},
        "train-00/4.left.jpg": {},
        "train-00/4.right.jpg": {},
    }
    assert list(skipped) == [f"{shard}::3.json"]
    assert [read_uri(i.uri) for i in items] == [i.read() for i in items]


def test_a_shard_never_leaves_its_file(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    inside = tmp_path / "in"
    inside.mkdir()
    shard = make_tar(
        inside / "evil.tar",
        [
            ("../secret.jpg", b"overwritten"),
            ("/etc/x.jpg", PNG),
            ("a/../../x.jpg", PNG),
            ("soft.jpg", special(tarfile.SYMTYPE, "../secret.jpg")),
            ("hard.jpg", special(tarfile.LNKTYPE, "../secret.jpg")),
            ("device.jpg", special(tarfile.CHRTYPE)),
            ("pipe.jpg", special(tarfile.FIFOTYPE)),
            ("folder", special(tarfile.DIRTYPE)),
            ("folder/good.jpg", PNG),
        ],
    )

    items, skipped = split(open_sources([shard]))

    assert [(i.id, i.read()) for i in items] == [("evil/folder/good", PNG)]
    assert len(skipped) == 7
    assert "links are not followed" in skipped[f"{shard}::soft.jpg"]
    assert "outside" in skipped[f"{shard}::../secret.jpg"]
    assert "special" in skipped[f"{shard}::device.jpg"]
    assert secret.read_bytes() == b"secret"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["evil.tar", "in", "secret.jpg"]


def test_a_shard_that_is_cut_short_gives_what_it_has_and_is_listed(tmp_path):
    shard = make_tar(tmp_path / "s.tar", [(f"{i}.jpg", bytes(2000)) for i in range(5)])
    shard.write_bytes(shard.read_bytes()[:7000])
    other = make_tar(tmp_path / "t.tar", [("x.jpg", PNG)])

    items, skipped = split(open_sources([shard, other]))

    assert [i.id for i in items] == ["s/0", "s/1", "t/x"]
    assert "cannot be read to its end" in skipped[str(shard)]


def test_shards_inside_a_folder_are_opened(tmp_path):
    (tmp_path / "deep").mkdir()
    make_tar(tmp_path / "deep" / "s.tar", [("x.jpg", PNG)])

    items, _ = split(open_sources([tmp_path], prefix="new/"))

    assert [i.id for i in items] == ["new/deep/s/x"]
    assert read_uri(items[0].uri) == PNG


TYPES = {
    "bytes": pa.large_binary(), "bytes view": pa.binary_view(), "file large": pa.large_string(),
    "bytes fixed": pa.binary(len(PNG)), "file view": pa.string_view(),
    "file once": pa.dictionary(pa.int8(), pa.string()),
}  # fmt: skip


@pytest.mark.parametrize("form", ["bytes", "struct", "file", *TYPES])
def test_parquet_gives_pictures_from_bytes_structs_and_names(tmp_path, form):
    (tmp_path / "a.jpg").write_bytes(PNG)
    image = {
        "bytes": pa.array([PNG, None]),
        "struct": pa.array([{"bytes": PNG, "path": "a.jpg"}, {"bytes": None, "path": "b"}]),
        "file": pa.array(["a.jpg", "../b.jpg"]),
    }[form.split()[0]]
    image = image.cast(TYPES[form]) if form in TYPES else image
    name = "file" if form.startswith("file") else "image"
    table = pa.table({"id": ["x", "y"], name: image, "year": [1, 2]})
    parquet.write_table(table, tmp_path / "t.parquet")

    items, skipped = split(open_sources([tmp_path / "t.parquet"]))

    assert [(i.id, i.read(), dict(i.columns)) for i in items] == [("x", PNG, {"year": 1})]
    assert list(skipped) == [f"{tmp_path / 't.parquet'}::1"]
    assert read_uri(items[0].uri) == PNG


def test_parquet_without_pictures_or_broken_is_listed(tmp_path):
    parquet.write_table(pa.table({"year": [1]}), tmp_path / "t.parquet")
    (tmp_path / "u.parquet").write_bytes(b"PAR1 and no more")

    items, skipped = split(open_sources([tmp_path / "t.parquet", tmp_path / "u.parquet"]))

    assert not items
    assert "no column of pictures" in skipped[str(tmp_path / "t.parquet")]
    assert "cannot be read" in skipped[str(tmp_path / "u.parquet")]


def test_jsonl_gives_named_files_with_captions_and_lists_bad_lines(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "猫.jpg").write_bytes(PNG)
    lines = [
        {"id": "cat", "file": "images/猫.jpg", "captions": ["a", "b"], "split": "test"},
        {"file": "images/absent.jpg"},
        {"id": "evil", "file": "../../etc/passwd"},
        {"id": "evil2", "file": "/etc/passwd"},
        {"caption": "names nothing"},
    ]
    file = tmp_path / "captions.jsonl"
    text = "\n".join([*map(json.dumps, lines), "{half", "[1]", ""])
    file.write_text(text)

    items, skipped = split(open_sources([file]))

    assert [i.id for i in items] == ["cat", "images/absent.jpg"]
    assert items[0].read() == PNG
    assert dict(items[0].columns) == {"captions": ["a", "b"], "split": "test"}
    assert [int(uri.rpartition(":")[2]) for uri in skipped] == [3, 4, 5, 6, 7]
    with pytest.raises(ConfigError, match="any more"):
        read_uri(items[1].uri)


def test_a_path_that_is_no_source_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"")

    with pytest.raises(ConfigError, match="no file or folder"):
        open_sources([tmp_path, tmp_path / "absent"])
    with pytest.raises(ConfigError, match=r"a\.docx is no source"):
        open_sources([tmp_path / "a.docx"])


def test_photos_at_an_address_that_nothing_reads_are_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"this machine and from s3://.*, got ftp://host/photos"):
        open_sources(["ftp://host/photos"])


def test_a_folder_keeps_its_own_name_whatever_links_lead_to_it(tmp_path):
    for name in ("b", "d"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "1.png").write_bytes(PNG)
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "2.png").write_bytes(PNG)
    for link, place in {"a": "root/b", "c": "away", "e": "root/d", "b/loop": "root"}.items():
        (tmp_path / "root" / link).symlink_to(tmp_path / place, target_is_directory=True)

    items, skipped = split(open_sources([tmp_path / "root"]))

    assert [i.id for i in items] == ["b/1.png", "c/2.png", "d/1.png"]
    assert {os.path.basename(uri) for uri in skipped} == {"a", "e"}
