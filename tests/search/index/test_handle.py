"""An index that threads share while other processes write, compact, move or delete it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from datetime import timedelta

import numpy as np
import pytest

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.lance_calls import UnreadableError
from fourm_lite.search.index.storage import Snapshot

ROWS, WIDTH = 60, 16


def vectors(count=ROWS, seed=0):
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.fixture
def index(tmp_path):
    made = Index.create(tmp_path / "idx", space="toy")
    made.add([f"a{i}" for i in range(ROWS)], vectors(), n=list(range(ROWS)))
    return made


WRITER = """
import sys
import numpy as np
from datetime import timedelta
from fourm_lite.search.index.index import Index
v = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
index = Index.open(sys.argv[1])
print("ready", flush=True)
for k in range(int(sys.argv[2])):
    ids = [k % 6, (k + 1) % 6]
    index.upsert([f"a{i}" for i in ids], v[ids], n=ids)
    index.add([f"x{k}"], -v[:1], n=[-1])
    index.delete([f"x{k}"])
    if k % 10 == 9:
        index.compact(keep=timedelta(0))
"""


def test_threads_that_share_an_index_never_get_a_wrong_row_while_others_write(index):
    wrong, asked = [], [0]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, index.path, "25"], stdout=subprocess.PIPE
    )
    writer.stdout.readline()
    v = vectors()

    def read(number):
        while writer.poll() is None:
            try:
                hits = index.search(v[number], k=2)
                own = index.get([f"a{number}"], ["n"]).column(0).to_pylist()
                plain = index.search(v[number], k=1, columns=[]).ids
            except Exception as error:
                wrong.append(repr(error))
                return
            asked[0] += 1
            told = (hits.ids[0], hits.columns["n"][0], own, plain)
            if told != (f"a{number}", number, [number], [f"a{number}"]):
                wrong.append(told)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    writer.communicate()

    assert (writer.returncode, wrong) == (0, [])
    assert asked[0] > 20


def test_a_scan_holds_one_version_from_start_to_end(index):
    other = Index.open(index.path)
    seen = []
    for batch in index.scan(["id"]):
        other.delete(["a59"])
        seen += batch.column(0).to_pylist()

    assert len(seen) == ROWS
    assert len(index) == ROWS - 1


def test_rows_that_are_gone_are_noticed_not_guessed(index):
    reader = index._handle.newest()
    there = next(iter(reader.places(["a3"]).values()))

    for gone in ([10**9], [there, 10**9], [10**9, there]):
        with pytest.raises(UnreadableError, match="rows are gone"):
            reader.rows.take(np.array(gone, np.uint64), ["id"])
    assert reader.rows.take(np.array([there], np.uint64), ["id"]).column(0).to_pylist() == ["a3"]


@pytest.mark.parametrize("locks", [True, False])
def test_a_version_that_is_dropped_under_a_search_costs_one_retry(index, locks, monkeypatch):
    other, real, dropped = Index.open(index.path), Snapshot.take, []
    if not locks:  # as in an object store
        monkeypatch.setattr(index._handle.rows._pins, "path", None)

    def late(self, *words):
        if not dropped:
            dropped.append(True)
            other.upsert(["a1"], vectors()[1:2], n=[1])
            other.compact(keep=timedelta(0))
        return real(self, *words)

    monkeypatch.setattr(Snapshot, "take", late)

    assert index.search(vectors()[7], k=1).ids == ["a7"]
    assert dropped


def test_there_is_one_retry_and_then_a_sentence(index, monkeypatch):
    calls = []

    def gone(self, **words):
        calls.append(words)
        raise RuntimeError("Not found: /idx/items.lance/data/1.lance")

    monkeypatch.setattr(type(index._handle.newest().rows.handle), "scanner", gone)

    with pytest.raises(FourMError, match="idx cannot be read"):
        index.search(vectors()[0], k=1)
    assert len(calls) == 2


USES = {
    "search": lambda index: index.search(vectors()[0], k=1),
    "get": lambda index: index.get(["a0"]),
    "len": len,
    "columns": lambda index: index.columns,
    "info": lambda index: index.info(),
    "scan": lambda index: list(index.scan(["id"])),
    "add": lambda index: index.add(["new"], vectors(1), n=[1]),
    "upsert": lambda index: index.upsert(["new"], vectors(1), n=[1]),
    "delete": lambda index: index.delete(["a0"]),
    "compact": lambda index: index.compact(),
    "calibration": lambda index: index.set_calibration(None),
    "build": lambda index: index.build_ann(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("what", ["", "items.lance", "manifest.json"])
@pytest.mark.parametrize("warm", [True, False])
def test_an_index_deleted_under_a_handle_is_said_in_a_sentence(index, use, what, warm):
    if warm:
        index.search(vectors()[0], k=1)
    place = index._handle.path + ("/" + what if what else "")
    if what == "manifest.json":
        os.unlink(place)
    else:
        shutil.rmtree(place)
    if what == "items.lance" and use is USES["calibration"]:
        return  # it touches the manifest alone

    with pytest.raises(FourMError) as caught:
        use(index)
    assert "\n" not in str(caught.value)


def test_an_index_made_anew_at_the_same_place_is_another_one(index, tmp_path):
    index.search(vectors()[0], k=1)
    shutil.rmtree(tmp_path / "idx")
    other = Index.create(tmp_path / "idx", space="toy")
    other.add([f"b{i}" for i in range(ROWS)], vectors()[::-1], n=list(range(ROWS)))

    hits = index.search(vectors()[0], k=1)

    assert (hits.ids, hits.columns["n"]) == (["b59"], [59])


def test_a_calibration_of_another_handle_is_noticed(index):
    from fourm_lite.search.calibration.calibrate import learn

    rng = np.random.default_rng(3)
    asked = vectors()[:40] + rng.standard_normal((40, WIDTH)).astype(np.float32)
    right = [[f"a{i}"] for i in range(40)]
    assert index.search(asked[0], k=1).p_right is None

    writer = Index.open(index.path)
    made, _ = learn(writer.search_many(asked, 2, columns=[]), right)
    writer.set_calibration(made)

    assert index.search(asked[0], k=1).p_right is not None


@pytest.mark.parametrize("keep", [timedelta.max, timedelta(days=10**7), timedelta(days=-3)])
def test_any_length_of_time_may_be_kept(index, keep):
    index.compact(keep=keep)

    assert index.search(vectors()[5], k=1).ids == ["a5"]


def test_a_query_of_another_space_is_refused_after_a_reopening_too(index, tmp_path):
    shutil.rmtree(tmp_path / "idx")
    Index.create(tmp_path / "idx", space="other").add(["b"], vectors(1))

    with pytest.raises(ConfigError, match="other"):
        index.search(vectors()[0], k=1, space="toy")
