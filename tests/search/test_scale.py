"""Parts that several processes make become the rows of one process, whatever happens on the way.

The processes are played by calls here; `tests/test_cluster.py` starts them.
"""

import numpy as np
import pytest
from tiny_pipeline import photo
from tiny_shards import orphans, same, shard

from fourm_lite.errors import FourMError
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.photos.columns import photo_facts
from fourm_lite.photos.source_parts import FILES, parts_of
from fourm_lite.photos.sources import open_sources
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import index_items
from fourm_lite.search.index.loading import Loader
from fourm_lite.search.index.uncommitted import sweep
from fourm_lite.search.scale import Job, Stager, index_parts
from fourm_lite.search.scale import _clear as clear


def colours(images):
    return np.stack([np.asarray(i.resize((4, 4)), np.float32).reshape(-1) + 1 for i in images])


@pytest.fixture
def sources(tmp_path):
    """Three shards, a folder in which a shard lies among photos, and a photo by itself."""
    made = [shard(tmp_path / f"s-{i}.tar", range(10 * i, 10 * i + 6)) for i in range(3)]
    more = tmp_path / "more"
    more.mkdir()
    for i in range(40, 44):
        photo(i).save(more / f"{i}.png")
    (more / "44.png").write_bytes(b"no photo")
    shard(more / "42.tar", range(50, 53))
    photo(60).save(tmp_path / "alone.png")
    return [*made, more, tmp_path / "alone.png"]


def embedder(count=None):
    """What a process opens; with a list, it counts there what is embedded."""

    def embed(images):
        if count is not None:
            count.append(len(images))
        return colours(images)

    return lambda: (embed, lambda known: Loader(known.get, open_rgb, photo_facts))


def runner(index, count=None, order=lambda numbers: numbers, stop_after=None):
    """Two processes that take parts in turns, in any order, and are stopped after some."""
    stagers = [Stager(Job(index.path, embedder(count), batch_size=4)) for _ in range(2)]

    def run_all(values, known):
        for turn, number in enumerate(order(list(range(len(values))))):
            if turn == stop_after:
                raise KeyboardInterrupt
            yield number, stagers[turn % 2](values[number], known)

    return run_all


def made(tmp_path, sources, name="there", **how):
    index = Index.create(tmp_path / name, space="toy")
    options = {n: how.pop(n) for n in ("prune",) if n in how}
    report, _ = index_parts(runner(index, **how), parts_of(sources), index, **options)
    return index, report


def told(report):
    return {**report.to_dict(), "seconds": 0, "rate": 0}


@pytest.mark.parametrize("order", [lambda n: n, lambda n: n[::-1]])
def test_rows_order_and_report_are_those_of_one_process(tmp_path, sources, order):
    here = Index.create(tmp_path / "here", space="toy")
    wanted = index_items(open_sources(sources), colours, here, batch_size=4)

    there, report = made(tmp_path, sources, order=order)

    same(here, there)
    assert told(report) == told(wanted)
    assert len(report.unreadable) == 5
    assert not orphans(there)


def test_rows_appear_in_one_version(tmp_path, sources):
    index, report = made(tmp_path, sources)

    table = index.rows.newest().handle
    counts = [
        table.checkout_version(version["version"]).count_rows() for version in table.versions()
    ]
    assert set(counts) == {0, report.added}


def test_a_folder_is_cut_and_the_parts_hold_its_items_in_order(tmp_path):
    for number in range(2 * FILES + 3):
        (tmp_path / f"{number:04d}.png").touch()

    parts = list(parts_of([tmp_path], "x/"))

    assert [len(part.found) for part in parts] == [FILES, FILES, 3]
    listed = [one.id for part in parts for one in part.items()]
    assert listed == [one.id for one in open_sources([tmp_path], prefix="x/")]


def test_shards_in_a_bucket_are_parts_that_are_not_opened():
    pytest.importorskip("upath")
    pytest.importorskip("s3fs")

    parts = list(parts_of(["s3://photos/s-{0..2}.tar"]))

    assert [str(part.shard) for part in parts] == [f"s3://photos/s-{n}.tar" for n in range(3)]


def test_a_run_that_was_stopped_goes_on_with_what_is_done_and_leaves_nothing(tmp_path, sources):
    here, _ = made(tmp_path, sources, "here")
    there = Index.create(tmp_path / "there", space="toy")
    first, second = [], []
    with pytest.raises(KeyboardInterrupt):
        index_parts(runner(there, first, stop_after=3), parts_of(sources), there)
    assert len(there) == 0

    index_parts(runner(there, second), parts_of(sources), there)

    assert sum(first) + sum(second) == len(there)
    same(here, there)
    sweep(there.rows)
    assert not orphans(there)


@pytest.mark.parametrize("harm", ["source", "file of rows", "note"])
def test_what_changed_since_it_was_made_is_made_again(tmp_path, sources, harm):
    there = Index.create(tmp_path / "there", space="toy")
    with pytest.raises(KeyboardInterrupt):
        index_parts(runner(there, stop_after=1), parts_of(sources), there)
    note = next((tmp_path / "there" / "parts").iterdir())
    if harm == "source":
        shard(sources[0], range(70, 79))
    elif harm == "note":
        note.write_text(note.read_text()[:100])
    else:
        next((tmp_path / "there" / "items.lance" / "data").iterdir()).unlink()

    index_parts(runner(there), parts_of(sources), there)

    here, _ = made(tmp_path, sources, "here")
    same(here, there)
    sweep(there.rows)
    assert not orphans(there)
    clear(tmp_path / "there" / "parts")
    assert not list((tmp_path / "there" / "parts").iterdir())


@pytest.mark.parametrize("order", [lambda n: n, lambda n: n[::-1]])
def test_columns_that_get_another_type_on_the_way_hold_all_values(tmp_path, order):
    says = [
        lambda i: {"x": i, "only": i},
        lambda i: {"x": i + 0.5, "deep": {"a": i}},
        lambda i: {"x": i, "deep": {"b": "text"}},
    ]
    sources = [
        shard(tmp_path / f"s-{n}.tar", range(10 * n, 10 * n + 4), say) for n, say in enumerate(says)
    ]
    here = Index.create(tmp_path / "here", space="toy")
    index_items(open_sources(sources), colours, here)

    there, report = made(tmp_path, sources, order=order)

    table = there.rows.newest().handle.to_table()
    assert table["x"].to_pylist() == [0, 1, 2, 10.5, 11.5, 12.5, 20, 21, 22]
    assert table["only"].to_pylist() == [0, 1, 2, *[None] * 6]
    assert [row and row["b"] for row in table["deep"].to_pylist()][6:] == ["text"] * 3
    assert not report.left_empty
    same(here, there)


def test_an_id_that_comes_twice_is_listed_and_the_first_counts(tmp_path, sources):
    again = tmp_path / "again"
    again.mkdir()
    twice = [*sources, shard(again / "s-0.tar", range(3, 9)), sources[1]]
    here = Index.create(tmp_path / "here", space="toy")
    wanted = index_items(open_sources(twice), colours, here)

    there, report = made(tmp_path, twice)

    same(here, there)
    assert told(report) == told(wanted)


def test_a_second_run_embeds_what_is_new_replaces_what_changed_and_prunes(tmp_path, sources):
    indexes = [Index.create(tmp_path / name, space="toy") for name in ("here", "there")]
    for _ in range(2):
        reports = [
            index_items(open_sources(sources), colours, indexes[0], prune=True),
            index_parts(runner(indexes[1]), parts_of(sources), indexes[1], prune=True)[0],
        ]
        assert told(reports[0]) == told(reports[1])
        photo(99).save(sources[3] / "41.png")
        (sources[3] / "42.png").unlink(missing_ok=True)
        photo(65).save(sources[3] / "65.png")
        (sources[3] / "44.png").unlink(missing_ok=True)

    assert (reports[1].added, reports[1].changed, reports[1].removed) == (1, 1, 1)
    rows = [
        sorted(index.rows.newest().handle.to_table().to_pylist(), key=lambda row: row["id"])
        for index in indexes
    ]
    assert rows[0] == rows[1]


def test_another_writer_in_between_is_told_of_and_nothing_is_doubled(tmp_path, sources):
    index = Index.create(tmp_path / "there", space="toy")
    index.add(["first"], [np.ones(48)])
    plain = runner(index)

    def meddled(values, known):
        yield from plain(values, known)
        if values:
            index.add(["other"], [np.ones(48)])

    with pytest.raises(FourMError, match="another process wrote"):
        index_parts(meddled, parts_of(sources), index)
    assert len(index) == 2

    report, _ = index_parts(runner(index), parts_of(sources), index)

    assert len(index) == 2 + report.added
