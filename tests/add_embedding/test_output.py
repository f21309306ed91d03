"""What is copied beside a grown model, and what a disk that is full makes of it."""

from __future__ import annotations

import errno
import shutil

import pytest

from fourm_lite.add_embedding.model_folder import _copy
from fourm_lite.errors import StorageError


@pytest.mark.parametrize("named", ["", "model.safetensors"])
def test_a_full_disk_while_tokenizers_are_copied_is_a_sentence(tmp_path, named, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).write_text("{}")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    _copy(source / named, tmp_path / "there")
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageError, match="disk is full"):
        _copy(source / named, tmp_path / "out")
