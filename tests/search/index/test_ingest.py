import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.photos.item import Item
from fourm_lite.photos.sources import open_sources
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import index_items


def colours(images):
    """A toy embedding: the picture at 4x4 pixels, plus a trace of who shared its batch."""
    made = np.stack([np.asarray(i.resize((4, 4)), np.float32).reshape(-1) + 1 for i in images])
    return made + 1e-3 * made.mean()


def codes(images):
    return np.stack([np.asarray(i.resize((4, 4)).convert("L")).reshape(-1) for i in images])


def rows_of(index):
    ids = [i for batch in index.scan(["id"]) for i in batch.column(0).to_pylist()]
    assert len(ids) == len(set(ids))
    return {i: v.tobytes() for i, v in zip(ids, index.vectors(ids), strict=True)}


@pytest.fixture
def index(tmp_path):
    return Index.create(tmp_path / "idx", space="toy")


def test_every_hard_file_is_indexed_or_listed_with_its_reason(hard_folder, index):
    folder, good, bad = hard_folder

    report = index_items(open_sources([folder]), colours, index, batch_size=3)

    reasons = {os.path.relpath(s.uri, folder): s.reason for s in report.unreadable}
    assert sorted(rows_of(index)) == good
    assert sorted(reasons) == bad
    assert "0 bytes" in reasons["empty.jpg"]
    assert "pixels" in reasons["bomb.png"]
    assert "that are none" in reasons["text.jpg"]
    assert "broken or cut off" in reasons["truncated.jpg"]
    assert reasons["broken.jpg"] == "broken link"
    assert (report.added, report.seen) == (len(good), len(good) + len(bad))


def test_a_bad_neighbour_shifts_nobodys_columns(tmp_path, index, photos):
    lines = []
    for i in range(12):
        lines.append({"id": f"p{i}", "file": f"{i:02d}.jpg", "year": 1900 + i})
    (photos / "04.jpg").write_bytes(b"")
    (photos / "07.jpg").unlink()
    (photos / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))

    index_items(open_sources([photos / "all.jsonl"]), colours, index, batch_size=5, workers=3)

    left = [i for i in range(12) if i not in (4, 7)]
    table = index.get([f"p{i}" for i in left], ["year", "uri"])
    assert table["year"].to_pylist() == [1900 + i for i in left]
    assert table["uri"].to_pylist() == [str(photos / f"{i:02d}.jpg") for i in left]
    for i in left[::3]:
        with Image.open(photos / f"{i:02d}.jpg") as image:
            assert index.search(colours([image.convert("RGB")])[0], k=1).ids == [f"p{i}"]


def test_a_second_run_embeds_only_what_is_new_or_changed(photos, index):
    embedded = []

    def watched(images):
        embedded.append(len(images))
        return colours(images)

    index_items(open_sources([photos]), watched, index, batch_size=4)
    again = index_items(open_sources([photos]), watched, index, batch_size=4)
    assert (sum(embedded), again.unchanged, again.added) == (12, 12, 0)

    new = Image.new("RGB", (9, 9), "teal")
    new.save(photos / "05.jpg")
    new.save(photos / "new.png")
    (photos / "03.jpg").unlink()
    third = index_items(open_sources([photos]), watched, index, batch_size=4, prune=True)

    assert sum(embedded) == 14
    assert (third.added, third.changed, third.unchanged) == (1, 1, 10)
    assert (third.missing, third.removed) == (1, 1)
    assert set(index.search(colours([new])[0], k=2).ids) == {"05.jpg", "new.png"}
    assert "03.jpg" not in rows_of(index)


def test_pictures_that_are_embedded_do_not_wait_for_the_commit(tmp_path, index):
    seen, alive = [], []
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02d}.png")

    def watched(images):
        seen.extend(map(weakref.ref, images))
        alive.append(sum(one() is not None for one in seen))
        return colours(images)

    index_items(open_sources([tmp_path]), watched, index, batch_size=2)

    assert len(seen) == 40
    assert max(alive) <= 4


def test_new_columns_of_an_old_picture_are_written_without_embedding(photos, index):
    def lines(year):
        rows = [{"file": f"{i:02d}.jpg", "year": year + i} for i in range(3)]
        (photos / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return open_sources([photos / "all.jsonl"])

    index_items(lines(1900), colours, index)
    before = rows_of(index)

    report = index_items(lines(2000), lambda images: pytest.fail("embedded"), index)

    assert report.updated == 3
    assert index.get(["01.jpg"], ["year"])["year"].to_pylist() == [2001]
    assert rows_of(index) == before


STRANGE = ["three", [3], {"a": 3}, "2020-13"]


@pytest.mark.parametrize("strange", STRANGE, ids=str)
@pytest.mark.parametrize("commit_rows", [1, 100])
def test_a_value_of_another_kind_is_listed_and_costs_neither_the_photo_nor_other_values(
    photos, index, strange, commit_rows
):
    years = [1, 2, strange, 4, 5]
    rows = [{"file": f"{i:02d}.jpg", "year": y, "who": f"p{i}"} for i, y in enumerate(years)]
    (photos / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run():
        source = open_sources([photos / "all.jsonl"])
        return index_items(source, colours, index, batch_size=1, commit_rows=commit_rows)

    report, again = run(), run()

    assert (report.added, report.unreadable, again.unchanged) == (5, [], 5)
    assert [Path(s.uri).name for s in report.left_empty] == ["02.jpg"]
    assert "'year'" in report.left_empty[0].reason
    assert report.to_dict()["left_empty"][0]["uri"].endswith("02.jpg")
    kept = index.get([f"{i:02d}.jpg" for i in range(5)], ["year", "who"])
    assert kept["year"].to_pylist() == [1, 2, None, 4, 5]
    assert kept["who"].to_pylist() == [f"p{i}" for i in range(5)]
    assert set(index.search(np.ones(index.width), where="year > 1").ids) == {
        "01.jpg", "03.jpg", "04.jpg"
    }  # fmt: skip


def test_an_id_that_comes_twice_is_listed_the_second_time(photos, index):
    items = [Item("same", str(p), p.read_bytes) for p in sorted(photos.iterdir())[:2]]

    report = index_items(items, colours, index)

    assert report.added == 1
    assert [(s.uri, "came before" in s.reason) for s in report.unreadable] == [(items[1].uri, True)]


def test_a_codes_only_index_is_filled_and_refreshed_too(tmp_path, photos):
    index = Index.create(tmp_path / "c", space="toy", kind="codes", codebook_size=256)

    index_items(open_sources([photos]), codes, index, batch_size=5)
    again = index_items(open_sources([photos]), codes, index, batch_size=5)

    assert (len(index), again.unchanged) == (12, 12)
    with Image.open(photos / "03.jpg") as image:
        np.testing.assert_array_equal(index.codes(["03.jpg"]), codes([image.convert("RGB")]))


def test_vectors_and_codes_can_be_filled_together(photos, index):
    index_items(open_sources([photos]), lambda x: (colours(x), codes(x)), index)

    assert index.codes(["00.jpg"]).shape == (1, 16)


def test_progress_is_told_after_every_block(photos, index):
    told = []

    index_items(
        open_sources([photos]),
        colours,
        index,
        batch_size=5,
        progress=lambda report: told.append(report.seen),
    )

    assert told == [5, 10, 12, 12]


def test_a_moved_folder_keeps_its_vectors_and_learns_its_new_place(photos, index, tmp_path):
    index_items(open_sources([photos]), colours, index)
    before = rows_of(index)
    photos.rename(tmp_path / "moved")

    report = index_items(
        open_sources([tmp_path / "moved"]), lambda images: pytest.fail("embedded"), index
    )

    assert report.updated == 12
    assert rows_of(index) == before
    uri = index.get(["03.jpg"], ["uri"])["uri"].to_pylist()
    assert uri == [str(tmp_path / "moved" / "03.jpg")]


def test_a_second_folder_with_equal_names_replaces_nothing(photos, index, tmp_path):
    index_items(open_sources([photos]), colours, index)
    before = rows_of(index)
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (8, 8), "teal").save(other / "03.jpg")

    report = index_items(open_sources([other]), colours, index)

    assert rows_of(index) == before
    assert "'03.jpg' is that of" in report.unreadable[0].reason
    assert index_items(open_sources([other], prefix="other/"), colours, index).added == 1


def test_pruning_by_an_empty_source_is_refused(photos, index, tmp_path):
    index_items(open_sources([photos]), colours, index)
    (tmp_path / "empty").mkdir()

    with pytest.raises(ConfigError, match="all 12 rows"):
        index_items(open_sources([tmp_path / "empty"]), colours, index, prune=True)
    assert len(index) == 12


def test_a_slow_embedder_commits_by_time(photos, index, monkeypatch):
    monkeypatch.setattr("fourm_lite.search.index.ingest.COMMIT_SECONDS", 0.0)
    rows = []

    def watched(images):
        rows.append(len(index))
        return colours(images)

    index_items(open_sources([photos]), watched, index, batch_size=4)

    assert rows == [0, 4, 8]


def test_an_embedder_that_loses_a_picture_is_refused(photos, index):
    with pytest.raises(ShapeError, match="11 vectors for 12 pictures"):
        index_items(open_sources([photos]), lambda x: colours(x)[1:], index)


SLOW_RUN = """
import sys, time
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_ingest import colours
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import index_items
from fourm_lite.photos.sources import open_sources

def slow(images):
    time.sleep(0.05)
    return colours(images)

index = Index.open(sys.argv[3])
len(index)
print("ready", flush=True)
index_items(open_sources([sys.argv[2]]), slow, index, batch_size=3, commit_rows=6)
"""


def many_photos(folder, count):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(buffer, "PNG")
        (folder / f"{i:03d}.png").write_bytes(buffer.getvalue() if i % 10 else b"")
    return folder


def run_and_kill(photos, path, seconds):
    script = textwrap.dedent(SLOW_RUN)
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", script, here, str(photos), path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


def check_killed_runs(tmp_path, moments):
    photos = many_photos(tmp_path / "photos", 100)
    whole = Index.create(tmp_path / "whole", space="toy")
    index_items(open_sources([photos]), colours, whole, batch_size=3, commit_rows=6)
    broken = Index.create(tmp_path / "broken", space="toy")

    for moment in moments:
        run_and_kill(photos, broken.path, moment)
    left = len(broken)
    report = index_items(open_sources([photos]), colours, broken, batch_size=3, commit_rows=6)

    assert rows_of(broken) == rows_of(whole)
    assert report.unchanged == left < 90
    assert report.added == 90 - left
    assert len(report.unreadable) == 10


def test_a_killed_run_is_continued_to_the_same_rows(tmp_path):
    check_killed_runs(tmp_path, [0.5])


@pytest.mark.slow
def test_a_run_killed_at_three_random_moments_is_continued_to_the_same_rows(tmp_path):
    check_killed_runs(tmp_path, [random.uniform(0.05, 0.7) for _ in range(3)])


def archive(path, names):
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            buffer = io.BytesIO()
            Image.new("RGB", (30, 30), (9 * i, 40, 90)).save(buffer, "BMP")
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))


def as_cut_tar(folder):
    archive(folder / "s.tar", [f"{i}.bmp" for i in range(4)])
    yield folder / "s.tar"
    (folder / "s.tar").write_bytes((folder / "s.tar").read_bytes()[:7000])
    yield folder / "s.tar"


def as_list_with_a_bad_line(folder):
    rows = [json.dumps({"file": f"{i:02d}.jpg"}) for i in range(4)]
    (folder / "l.jsonl").write_text("\n".join(rows))
    yield folder / "l.jsonl"
    (folder / "l.jsonl").write_text("\n".join([*rows[:2], rows[2][:9], rows[3]]))
    yield folder / "l.jsonl"


def as_cut_parquet(folder):
    table = pa.table({"file": [f"{i:02d}.jpg" for i in range(4)]})
    parquet.write_table(table, folder / "p.parquet")
    yield folder / "p.parquet"
    (folder / "p.parquet").write_bytes((folder / "p.parquet").read_bytes()[:-20])
    yield folder / "p.parquet"


@pytest.mark.parametrize("source", [as_cut_tar, as_list_with_a_bad_line])
def test_what_cannot_be_read_any_more_is_not_gone(tmp_path, photos, index, source):
    moments = source(photos)
    extra = tmp_path / "extra"
    extra.mkdir()
    Image.new("RGB", (8, 8), "teal").save(extra / "x.png")
    index_items(open_sources([next(moments), extra]), colours, index)
    before = rows_of(index)
    (extra / "x.png").unlink()

    report = index_items(open_sources([next(moments), extra]), colours, index, prune=True)

    assert report.unreadable
    assert report.removed == 1  # the photo that is gone for certain
    assert {i: v for i, v in before.items() if i != "x.png"} == rows_of(index)


def test_a_source_that_cannot_be_read_at_all_prunes_nothing_of_it(photos, index):
    moments = as_cut_parquet(photos)
    index_items(open_sources([next(moments), photos / "05.jpg"]), colours, index)

    report = index_items(
        open_sources([next(moments), photos / "05.jpg"]), colours, index, prune=True
    )

    assert (report.missing, report.removed, len(index)) == (4, 0, 5)


def test_new_columns_of_rows_with_and_without_codes_keep_both(tmp_path, index):
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 90, 9)).save(tmp_path / f"{i}.png")

    def listed(year):
        rows = [{"file": f"{i}.png", "year": year + i} for i in range(4)]
        (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return list(open_sources([tmp_path / "l.jsonl"]))

    index_items(listed(1900)[:2], colours, index)
    index_items(listed(1900), lambda images: (colours(images), codes(images)), index)
    vectors, known = rows_of(index), index.codes(["2.png", "3.png"])

    report = index_items(listed(2000), lambda images: pytest.fail("embedded"), index)

    assert (report.updated, report.unreadable) == (4, [])
    assert rows_of(index) == vectors
    np.testing.assert_array_equal(index.codes(["2.png", "3.png"]), known)
    with pytest.raises(ConfigError, match="row 0 of 2 has no codes"):
        index.codes(["0.png", "3.png"])
    hits = index.search(index.vectors(["0.png"])[0], k=4, columns=["codes"])
    told = dict(zip(hits.ids, hits.columns["codes"], strict=True))
    assert [told[f"{i}.png"] is None for i in range(4)] == [True, True, False, False]
    np.testing.assert_array_equal(told["2.png"], known[0])
