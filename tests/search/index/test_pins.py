"""Versions that are being read stay; nobody who reads waits for another who reads."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta

import numpy as np
import pytest

from fourm_lite.io import files
from fourm_lite.search.index import pins, storage
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.pins import FILE, Pins

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="locks of open files are Linux's")
NOW = timedelta(0)


@pytest.fixture
def index(tmp_path):
    made = Index.create(tmp_path / "idx", space="toy")
    made.add([f"a{i}" for i in range(4)], np.eye(4), n=list(range(4)))
    return made


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(pins, "DROP_WAIT", 0.05)
    monkeypatch.setattr(storage, "MARGIN", NOW)


def versions(index):
    return [v["version"] for v in index._handle.rows._table.versions()]


def replace_all(index):
    for number in range(4):
        index.upsert([f"a{number}"], np.eye(4)[[number]], n=[number])


def test_a_version_that_is_read_is_dropped_after_that_and_not_before(index, hasty):
    other = Index.open(index.path)
    with index._handle.pinned() as reader:
        replace_all(other)
        other.compact(keep=NOW)
        rows = [row for _, batch in reader.rows.scan(["n"]) for row in batch.to_pylist()]

    assert sorted(row["n"] for row in rows) == [0, 1, 2, 3]
    assert reader.rows.version in versions(other)
    other.compact(keep=NOW)
    assert len(versions(other)) == 1


def test_where_somebody_always_reads_what_is_older_goes_all_the_same(index, hasty):
    other = Index.open(index.path)
    replace_all(other)
    time.sleep(0.5)
    readers = []
    with ExitStack() as stack:
        for _ in range(3):
            other.upsert(["a0"], np.eye(4)[[0]], n=[0])
            len(index)
            readers.append(stack.enter_context(index._handle.pinned()))
            time.sleep(0.05)
        for _ in range(20):  # what must be older by the time that joining files took
            other.compact(keep=NOW)
            kept = versions(other)
            if 1 not in kept:
                break

        assert 1 not in kept
        assert {reader.rows.version for reader in readers} <= set(kept)


def test_a_drop_and_reads_of_what_stays_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(pins, "DROP_WAIT", 0.02)
    held = Pins(tmp_path)
    held.make()
    with held.reading(7), held.reading(9), held.dropping(20) as below, held.reading(7):
        assert below == 7
    with held.dropping(20) as below:
        assert below is None
    with held.reading(0), held.dropping(20) as below:
        assert below == 0


def test_a_drop_that_was_stopped_holds_no_read_up_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr(pins, "READ_WAIT", 0.05)
    held = Pins(tmp_path)
    held.make()
    with held.dropping(20), held.reading(3):
        pass


def test_the_lock_of_a_killed_reader_is_open(index, hasty):
    program = (
        "import sys\nfrom fourm_lite.search.index.index import Index\n"
        "with Index.open(sys.argv[1])._handle.pinned():\n"
        "    print('reads', flush=True)\n    sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, index.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    replace_all(index)
    index.compact(keep=NOW)
    assert len(versions(index)) > 1

    child.kill()
    child.communicate()
    index.compact(keep=NOW)
    assert len(versions(index)) == 1


@pytest.mark.parametrize("there", [True, False])
def test_reads_and_writes_go_on_where_the_file_cannot_be_used(index, there, monkeypatch):
    place = Pins(tmp := index._handle.rows._pins.path.parent).path
    place.unlink()
    if there:
        place.mkdir()  # can be opened and not written, as a file of another user
    else:
        monkeypatch.setattr(type(place), "touch", lambda self: (_ for _ in ()).throw(OSError()))
    replace_all(index)
    index.compact(keep=NOW)

    assert index.search(np.eye(4)[2], k=1).ids == ["a2"]
    assert (tmp / FILE).is_dir() == there


def test_no_descriptor_is_left_open(index):
    index.search(np.eye(4)[2], k=1)
    list(index.scan())
    index.compact(keep=NOW)

    assert not files._held
