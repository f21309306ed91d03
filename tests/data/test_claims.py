"""Folders of labels and tokens: damaged notes, several processes, full disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fourm_lite.data.labellers import EdgeLabeller, PaletteLabeller
from fourm_lite.data.pseudolabel import RUN, LabelRun, claim, pseudolabel
from fourm_lite.errors import ConfigError, StorageError
from fourm_lite.photos.records import read_records

DAMAGE = ["", "{", "[]", '{"records": ', "\x00\x00", '{"records": 3, "records": 4}']
RUNS = LabelRun(shard_size=2)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("text", DAMAGE)
def test_a_damaged_note_without_anything_made_is_written_anew(tmp_path, photos, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RUN).write_text(text)

    claim(tmp_path / "out", read_records(photos), RUNS)

    assert json.loads((tmp_path / "out" / RUN).read_text())["records"] == 5


@pytest.mark.parametrize("text", DAMAGE)
@pytest.mark.parametrize("note", [RUN, "color_palette/source.json"])
def test_a_damaged_note_beside_shards_is_refused_with_what_to_do(tmp_path, photos, text, note):
    records, out = read_records(photos), tmp_path / "out"
    pseudolabel(records, [PaletteLabeller()], out, run=RUNS)
    before = tree(out)
    (out / note).write_text(text)

    with pytest.raises(ConfigError, match=r"damaged.*remove that file and start again"):
        pseudolabel(records, [PaletteLabeller()], out, run=RUNS)
    (out / note).unlink()
    pseudolabel(records, [PaletteLabeller()], out, run=RUNS)

    after = tree(out)
    assert {**after, note: b""} == {**before, note: b""}


def test_a_full_disk_keeps_finished_shards_and_the_run_goes_on(tmp_path, photos, monkeypatch):
    records, out = read_records(photos), tmp_path / "out"
    pseudolabel(records, [PaletteLabeller()], tmp_path / "whole", run=RUNS)
    real = os.fsync
    for number in range(12):
        calls = iter(range(number))

        def full(handle, calls=calls):
            if next(calls, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with contextlib.suppress(StorageError):
                pseudolabel(records, [PaletteLabeller()], out, run=RUNS)

    pseudolabel(records, [PaletteLabeller()], out, run=RUNS)
    assert tree(out) == tree(tmp_path / "whole")


BOTH = """
import sys
from pathlib import Path
from fourm_lite.data.labellers import EdgeLabeller, PaletteLabeller
from fourm_lite.data.pseudolabel import LabelRun, pseudolabel
from fourm_lite.photos.records import read_records
labellers = {"edges": EdgeLabeller(), "palette": PaletteLabeller()}
records = read_records(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
pseudolabel(records, [labellers[n] for n in sys.argv[3:]], Path(sys.argv[2]),
            run=LabelRun(shard_size=1), workers=2)
"""


def test_two_processes_in_one_folder_both_finish_as_one_would(tmp_path, photos):
    names = (["palette"], ["palette", "edges"])
    words = [[sys.executable, "-c", BOTH, photos, tmp_path / "out", *n] for n in names]
    both = [
        subprocess.Popen([str(w) for w in one], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for one in words
    ]
    for one in both:
        assert one.stdout.readline() == b"ready\n"
    for one in both:
        one.stdin.write(b"go\n")
        one.stdin.flush()
    for one in both:
        one.communicate()
        assert one.returncode == 0

    expected = [PaletteLabeller(), EdgeLabeller()]
    pseudolabel(read_records(photos), expected, tmp_path / "one", run=LabelRun(shard_size=1))
    assert tree(tmp_path / "out") == tree(tmp_path / "one")
