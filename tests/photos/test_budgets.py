"""Sources that unpack to more than is read at once, and what is no file: listed, at once."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from fourm_lite.data.shards import read_tars
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.pictures import png
from fourm_lite.photos.item import Item, Skipped
from fourm_lite.photos.records import read_records
from fourm_lite.photos.sources import open_sources
from fourm_lite.reading.regular import budget, set_budget
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import index_items

PHOTO = png(Image.new("RGB", (8, 8), "red"))


@pytest.fixture(autouse=True)
def _small():
    before = budget()
    set_budget(bytes=1 << 18)
    started = time.process_time()  # others compute beside the tests
    yield
    set_budget(bytes=before.bytes)
    assert time.process_time() - started < 10


def told(path):
    """Ids of the photos, and reasons of what is left out."""
    items = list(open_sources([path]))
    return (
        [i.id for i in items if isinstance(i, Item)],
        [i.reason for i in items if isinstance(i, Skipped)],
    )


def indexed(path, folder):
    def embed(pictures):
        return np.stack([np.asarray(p).mean(axis=(0, 1)) + 1 for p in pictures])

    return index_items(open_sources([path]), embed, Index.create(folder / "idx", space="toy"))


def test_pipes_and_devices_in_a_folder_are_listed_whatever_they_are_called(tmp_path):
    for name in ("a.jpg", "b", "c.tar", "d.txt"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "null.png").symlink_to("/dev/zero")
    (tmp_path / "photo.png").write_bytes(PHOTO)

    ids, reasons = told(tmp_path)

    assert ids == ["photo.png"]
    assert len(reasons) == 6
    assert all("not opened" in reason for reason in reasons)
    with pytest.raises(ConfigError, match="a pipe or a device"):
        list(open_sources([tmp_path / "c.tar"]))


def test_a_sparse_photo_is_listed_and_the_next_is_indexed(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    with (photos / "a.jpg").open("wb") as file:
        file.truncate(1 << 40)
    (photos / "b.png").write_bytes(PHOTO)

    report = indexed(photos, tmp_path)

    assert report.added == 1
    assert [s.uri for s in report.unreadable] == [str(photos / "a.jpg")]


def test_a_list_line_by_line_and_within_bounds(tmp_path):
    (tmp_path / "p.png").write_bytes(PHOTO)
    rows = [
        {"file": "p.png", **{f"c{i}": i for i in range(5000)}},
        {"file": "p.png", "id": "deep", "more": {f"c{i}": i for i in range(5000)}},
        {"file": "p.png", "id": "good"},
    ]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    ids, reasons = told(tmp_path / "l.jsonl")

    assert ids == ["good"]
    assert all("keys or more" in reason for reason in reasons)
    assert len(reasons) == 2


def test_a_sparse_list_is_listed(tmp_path):
    with (tmp_path / "l.jsonl").open("wb") as file:
        file.truncate(1 << 40)

    assert told(tmp_path / "l.jsonl")[0] == []
    assert "--max-bytes" in told(tmp_path / "l.jsonl")[1][0]


def tar_of(path, members, form=""):
    with tarfile.open(path, f"w:{form}") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def test_a_packed_tar_gives_what_fits_and_says_that_it_ends(tmp_path):
    many = [("a.png", PHOTO), *((f"{i}.png", bytes(99_999)) for i in range(20))]
    path = tar_of(tmp_path / "t.tar.gz", many, "gz")

    ids, reasons = told(path)

    assert ids[0] == "t/a"
    assert "--max-bytes" in reasons[-1]
    with pytest.raises(FourMError, match="--max-bytes"):
        list(read_tars({"rgb": path}))


def test_a_sample_of_many_members_is_no_way_around(tmp_path):
    members = [("a.png", PHOTO), *((f"a.{i}.txt", os.urandom(60_000)) for i in range(8))]
    path = tar_of(tmp_path / "t.tar", members)

    ids, reasons = told(path)

    assert ids == ["t/a"]
    assert any("read at once" in reason for reason in reasons)


def parquet(path, rows, **options):
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.table(rows), path, **options)
    return path


def test_a_table_that_grows_when_it_is_read_is_listed(tmp_path):
    path = parquet(tmp_path / "t.parquet", {"image": [bytes(1 << 22)] * 3}, compression="zstd")

    ids, reasons = told(path)

    assert ids == []
    assert "--max-bytes" in reasons[0]


def test_a_cell_that_is_stored_once_for_many_rows_is_read_row_by_row(tmp_path):
    data = PHOTO + bytes(60_000)
    path = parquet(tmp_path / "t.parquet", {"image": [data] * 500})

    ids, reasons = told(path)

    assert len(ids) == 500
    assert not reasons


@pytest.mark.parametrize("column", ["image", "file"])
def test_a_table_of_thousands_of_columns_is_listed(tmp_path, column):
    rows = {column: ["a.png"], **{f"c{i}": [i] for i in range(1500)}}

    ids, reasons = told(parquet(tmp_path / "t.parquet", rows))

    assert ids == []
    assert "columns" in reasons[0]


def test_a_table_of_more_rows_than_its_bytes_is_listed(tmp_path):
    set_budget(rows=100)
    path = parquet(tmp_path / "t.parquet", {"file": ["a.png"] * 300_000})

    try:
        ids, reasons = told(path)
    finally:
        set_budget(rows=1 << 20)

    assert ids == []
    assert "300000 rows" in reasons[0]


def test_captions_that_grow_when_they_are_unpacked_are_refused(tmp_path):
    import gzip

    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"a dog\n" * 200_000))

    with pytest.raises(FourMError, match="--max-bytes"):
        read_records(tmp_path / "c.txt.gz")
