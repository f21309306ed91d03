"""What happens to rows when several processes write, one dies, or the disk is full."""

import errno
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fourm_lite.errors import ConfigError, FourMError, StorageError
from fourm_lite.io.recipe import from_dict
from fourm_lite.search.index import manifest as manifests
from fourm_lite.search.index.filters import in_filter
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.manifest import Manifest, read_manifest, write_manifest

WRITER = """
import sys, time
import numpy as np
from fourm_lite.errors import ConfigError
from fourm_lite.search.index.index import Index

path, name = sys.argv[1], sys.argv[2]
index = Index.open(path)
print("ready", flush=True)
sys.stdin.readline()
taken = 0
for i in range(6):
    v = np.random.default_rng(i).standard_normal((3, 8))
    index.add([f"{name}-{i}-{j}" for j in range(3)], v, writer=[name] * 3)
    try:
        taken += index.add([f"shared-{i}"], v[:1])
    except ConfigError:
        pass
print(taken, flush=True)
"""


def start(script, *args):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)


def test_two_processes_that_add_at_once_lose_nothing_and_double_nothing(tmp_path):
    index = Index.create(tmp_path / "idx", space="toy")
    writers = [start(WRITER, index.path, name) for name in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()

    answers = [writer.communicate() for writer in writers]

    assert all(writer.returncode == 0 for writer in writers), answers
    ids = [i for batch in index.scan(["id"]) for i in batch.column(0).to_pylist()]
    expected = {f"{name}-{i}-{j}" for name in "ab" for i in range(6) for j in range(3)}
    assert set(ids) == expected | {f"shared-{i}" for i in range(6)}
    assert len(ids) == len(set(ids))
    assert sum(int(out) for out, _ in answers) == 6


FULL = """
import resource, signal, sys
import numpy as np
from fourm_lite.errors import FourMError
from fourm_lite.search.index.index import Index

index = Index.open(sys.argv[1])
len(index)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
v = np.random.default_rng(1).standard_normal((20_000, 8))
try:
    index.add(list(range(100, 20_100)), v)
except FourMError as error:
    print("refused", error, flush=True)
print(len(index), index.search(v[0], k=3).ids.__len__(), flush=True)
"""


def test_a_disk_that_takes_no_more_leaves_the_last_version_readable(tmp_path):
    index = Index.create(tmp_path / "idx", space="toy")
    index.add(list(range(50)), vectors(50))

    out, err = start(FULL, index.path).communicate()

    assert out.startswith("refused the rows could not be written"), out + err
    assert out.splitlines()[-1] == "50 3"
    again = Index.open(index.path)
    assert again.search(vectors(50)[7], k=1).ids == [7]
    again.add([50], vectors(1, 9))
    assert len(again) == 51


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = str(tmp_path)
    write_manifest(path, Manifest(space="old"))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"disk is full.*unchanged"):
        write_manifest(path, Manifest(space="new"))

    with pytest.raises(FourMError, match="stood there is unchanged"):
        Index.open(path).set_calibration(None)
    assert read_manifest(path).space == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["manifest.json"]


def test_a_manifest_returns_as_it_was_written(tmp_path):
    written = Manifest(
        space="tok_dinov2_global",
        kind="codes",
        codebook_size=8192,
        model="m",
        tokenizer="t",
        preprocessing={"size": 224, "mean": [0.5]},
        licence="CC-BY-4.0",
        fingerprints={"model": "ab12"},
        extra={"owner": "köln"},
    )
    write_manifest(str(tmp_path), written)

    assert read_manifest(str(tmp_path)) == written


def test_a_manifest_refuses_what_it_cannot_mean(tmp_path):
    with pytest.raises(ConfigError, match="needs the name of its space"):
        from_dict(Manifest, {"space": ""})
    with pytest.raises(ConfigError, match="Did you mean 'tokenizer'"):
        from_dict(Manifest, {"space": "a", "tokeniser": "x"})
    with pytest.raises(ConfigError, match="index format 1, the manifest says 9"):
        from_dict(Manifest, {"space": "a", "format": 9})
    with pytest.raises(ConfigError, match="made with model ab, the query with model cd"):
        Manifest(space="a", fingerprints={"model": "ab"}).require_fingerprints({"model": "cd"})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="should be JSON"):
        Index.open(tmp_path)


def test_a_writer_gives_up_with_a_reason_when_it_always_meets_others(tmp_path, monkeypatch):
    index = Index.create(tmp_path / "idx", space="toy")
    index.add([1], vectors(1))
    monkeypatch.setattr("fourm_lite.search.index.storage.ATTEMPTS", 2)

    def busy(*_args, **_kwargs):
        raise RuntimeError("Commit conflict for version 3")

    monkeypatch.setattr(type(index._handle.rows.newest().handle), "delete", busy)
    with pytest.raises(FourMError, match="2 attempts"):
        index.delete([1])


def test_filters_of_ids_quote_text():
    assert in_filter("id", ["a'; DROP", 3]) == "`id` IN ('a''; DROP', 3)"


def test_of_many_that_make_one_index_at_once_one_does_and_others_are_told(tmp_path, monkeypatch):
    def slow(*words):
        time.sleep(0.05)
        write_manifest(*words)

    def make(_):
        try:
            Index.create(tmp_path / "idx", space="toy").add(["a"], np.eye(2)[:1])
        except ConfigError as error:
            return str(error)
        return "made"

    monkeypatch.setattr(manifests, "write_manifest", slow)
    with ThreadPoolExecutor(8) as pool:
        told = sorted(pool.map(make, range(8)))

    assert told.count("made") == 1
    assert all("there is an index" in one for one in told if one != "made")
    assert len(Index.open(tmp_path / "idx")) == 1
