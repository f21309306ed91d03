"""A verb that is stopped says what is kept."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fourm_lite.cli import app, main
from fourm_lite.cli.app import VERBS, Verb, kept
from fourm_lite.io.files import write_whole

RESUMABLE = ("train", "finetune", "pseudolabel", "tokenize", "index", "add-embedding", "generate")


def killed_by_terminate() -> None:
    """Is told to end."""
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def on_a_full_disk() -> None:
    """Writes by the system alone."""
    raise OSError(errno.ENOSPC, "No space left on device", "/mnt/labels")


def on_our_full_disk() -> None:
    """Writes a file of ours."""
    write_whole("/proc/nowhere/file", "")


def run(capsys, called):
    with pytest.MonkeyPatch.context() as patch:
        table = {**VERBS, "verb": Verb(called, "three are kept")}
        build, left = app.build_app, app.kept
        patch.setattr(app, "build_app", lambda asked: build(table, asked))
        patch.setattr(app, "kept", lambda words: left(words, table))
        with pytest.raises(SystemExit) as stopped:
            main(["verb"])
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("called", "number"), [(killed_by_terminate, signal.SIGTERM), (interrupted, signal.SIGINT)]
)
def test_a_signal_is_answered_by_what_is_kept(capsys, called, number, request):
    # a shell starts what runs in the background with SIGINT ignored, which Python then leaves so
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, ignored))
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]

    code, err = run(capsys, called)

    assert code == 128 + number
    assert err == f"stopped by {number.name}: three are kept\n"
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_what_the_system_refuses_is_one_sentence(capsys):
    code, err = run(capsys, on_a_full_disk)

    assert code == 2
    assert err == (
        "error: the system refused /mnt/labels: the disk is full; three are kept; "
        "make room and try again\n"
    )


@pytest.mark.parametrize("verb", RESUMABLE)
def test_every_resumable_verb_says_how_it_goes_on(verb):
    assert "kept" in kept([verb, "-o", "out"])
    assert "goes on" in kept([verb, "-o", "out"])


def test_a_process_that_is_told_to_end_leaves_no_draft(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(400):
        pixels = np.random.default_rng(i).integers(0, 255, (90, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    words = ["pseudolabel", tmp_path / "photos", "-o", tmp_path / "out", "--shard-size", 2]
    process = subprocess.Popen(
        [sys.executable, "-m", "fourm_lite", *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list((tmp_path / "out").glob("*/shard-00001*")):
        pass

    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()

    assert (process.returncode, err.splitlines()[-1]) == (
        143,
        f"stopped by SIGTERM: {VERBS['pseudolabel'].kept}",
    )
    assert not list((tmp_path / "out").rglob("*.tmp"))
