"""One process at a time in a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fourm_lite.errors import FourMError
from fourm_lite.io.files import alone

HOLD = """
import os, sys, time
from fourm_lite.io.files import alone
with alone(sys.argv[1]):
    child = os.fork()
    if child == 0:  # a child that outlives its killed parent
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()
    os._exit(1)  # as a kill
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    grandchild = int(child.stdout.readline())

    with pytest.raises(FourMError, match="another process is at work in"), alone(tmp_path):
        pass
    child.communicate(b"go\n")

    with alone(tmp_path):
        assert list(tmp_path.iterdir()) == []
    os.kill(grandchild, signal.SIGKILL)


def test_a_folder_is_made_for_the_lock_and_goes_if_nothing_comes_into_it(tmp_path):
    with alone(tmp_path / "a" / "new"):
        assert (tmp_path / "a" / "new").is_dir()
    with alone(tmp_path / "kept"):
        (tmp_path / "kept" / "file").write_text("")

    assert not (tmp_path / "a" / "new").exists()
    assert (tmp_path / "kept" / "file").exists()


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), alone(tmp_path):
        raise ZeroDivisionError
    with alone(tmp_path, wait=True):
        assert os.listdir(tmp_path) == []
