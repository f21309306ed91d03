"""Files and folders that are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from fourm_lite.errors import FourMError, StorageError
from fourm_lite.io import files
from fourm_lite.io.files import (
    remove_folder,
    remove_leftovers,
    replacing,
    replacing_folder,
    write_json,
    write_npz,
    write_whole,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def folder_of_one(path):
    with replacing_folder(path) as draft:
        (draft / "inner").write_text("new")


WRITERS = {
    "text": lambda path: write_whole(path, "new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "npz": lambda path: write_npz(path, {"new": np.arange(3)}),
    "folder": folder_of_one,
}
every_writer = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)


@every_writer
def test_what_is_written_has_the_permissions_of_the_umask(tmp_path, umask, writer):
    writer(tmp_path / "new" / "target")

    target = tmp_path / "new" / "target"
    assert permissions(target) == (0o777 if target.is_dir() else 0o666) & ~umask
    assert names(tmp_path / "new") == ["target"]


@every_writer
@pytest.mark.parametrize(
    ("number", "why"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota")]
)
@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_full_disk_is_one_sentence_and_leaves_what_stood_there(
    tmp_path, monkeypatch, writer, number, why, call
):
    def full(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "inner").write_text("old")
    if writer is not folder_of_one:
        remove_folder(tmp_path / "target")
        (tmp_path / "target").write_text("old")
        if call == "rename":
            return
    elif call == "replace":
        return
    monkeypatch.setattr(os, call, full)

    with pytest.raises(StorageError, match=why) as caught:
        writer(tmp_path / "target")
    assert caught.value.errno == number
    assert "unchanged" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["target"]
    kept = tmp_path / "target"
    assert (kept / "inner" if kept.is_dir() else kept).read_text() == "old"


def test_a_failed_write_tells_what_the_caller_keeps(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="three shards are kept"):
        write_whole(tmp_path / "file" / "inner", b"", kept="three shards are kept")


def test_an_error_of_the_block_passes_and_leaves_nothing(tmp_path):
    def interrupted():
        with replacing(tmp_path / "target") as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_an_error_of_our_own_inside_stays_what_it_is(tmp_path):
    with pytest.raises(FourMError, match="my own") as caught, replacing(tmp_path / "target"):
        raise FourMError("my own")
    assert type(caught.value) is FourMError


def test_writers_of_one_file_never_share_a_temporary_name(tmp_path):
    wrong = []

    def write(number):
        for _ in range(20):
            write_whole(tmp_path / "target", str(number) * 10_000, sync=False)
            found = (tmp_path / "target").read_text()
            if len(found) != 10_000 or len(set(found)) != 1:
                wrong.append(found[:20])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert names(tmp_path) == ["target"]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    name = "ü" * 120 + ".txt"

    write_whole(tmp_path / name, "x")

    assert names(tmp_path) == [name]


def test_a_device_is_written_into_and_stays_one(tmp_path):
    write_whole("/dev/null", "x")
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(
        [sys.executable, "-c", f"print(open({str(tmp_path / 'pipe')!r}).read())"],
        stdout=subprocess.PIPE,
    )
    write_whole(tmp_path / "pipe", "through")

    assert reader.communicate()[0] == b"through\n"
    assert names(tmp_path) == ["pipe"]


LEAVE = """
import os, sys
from fourm_lite.io.files import replacing, replacing_folder
with replacing(sys.argv[1] + "/file") as draft:
    draft.write_text("half")
    with replacing_folder(sys.argv[1] + "/folder") as other:
        (other / "inner").write_text("half")
        os._exit(0)  # as a kill: nothing is tidied up
"""


def test_what_a_killed_writer_left_is_removed_and_what_lives_is_not(tmp_path):
    (tmp_path / "mine.tmp").write_text("")
    subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path)], check=True)
    assert len(names(tmp_path)) == 3

    with replacing(tmp_path / "living") as draft:
        draft.write_text("whole")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([draft.name, "mine.tmp"])

    assert names(tmp_path) == ["living", "mine.tmp"]


def test_left_overs_of_other_machines_go_only_where_nobody_else_can_be(tmp_path):
    (tmp_path / ".a.0123abcd-1-0123abcd.tmp").write_text("")

    remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 1

    remove_leftovers(tmp_path, alone=True)
    assert names(tmp_path) == []


def test_no_half_of_a_removed_folder_bears_its_name(tmp_path, monkeypatch):
    (tmp_path / "step").mkdir()
    for number in range(3):
        (tmp_path / "step" / str(number)).write_text("")

    class KilledError(BaseException):
        """Stands for SIGKILL."""

    def cut(path, **_):
        next(path.iterdir()).unlink()
        raise KilledError

    monkeypatch.setattr(files.shutil, "rmtree", cut)
    with pytest.raises(KilledError):
        remove_folder(tmp_path / "step")

    assert not (tmp_path / "step").exists()
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_number_that_another_process_has_got_protects_no_leftover(tmp_path):
    with replacing(tmp_path / "file") as draft:
        draft.write_text("whole")
        start = files._start(os.getpid())
    living = f"{os.getppid()}-{files._start(os.getppid())}"
    kept = draft.name.replace(f"{os.getpid()}-{start}", living)
    left = draft.name.replace(f"{os.getpid()}-{start}", f"{os.getppid()}-1")
    (tmp_path / kept).write_text("")
    (tmp_path / left).write_text("")

    remove_leftovers(tmp_path)

    assert names(tmp_path) == sorted(["file", kept])


def test_who_is_alone_removes_what_was_left_in_any_folder_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path / "a" / "b")], check=True)

    remove_leftovers(tmp_path, alone=True)

    assert names(tmp_path / "a" / "b") == []
