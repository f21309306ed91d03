"""docs/train.md from its first block to its last, with fewer pictures and steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fourm_lite.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "train.md").read_text("utf-8")
FENCE = re.compile(r"(?:`([\w.]+)`:\n\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shortened(text: str) -> str:
    """The recipe with three steps, and batches of four."""
    text = re.sub(r"^steps = \d+", "steps = 3", text, flags=re.MULTILINE)
    text = re.sub(r"^batch_size = \d+", "batch_size = 4", text, flags=re.MULTILINE)
    return re.sub(
        r"^(save_every|log_every|warmup_steps) = \d+", r"\1 = 1", text, flags=re.MULTILINE
    )


def test_the_page_goes_from_pictures_to_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = []

    for name, language, text in FENCE.findall(PAGE):
        if language == "toml":
            Path(name).write_text(shortened(text))
        elif language == "python":
            exec(compile(text.replace("range(600)", "range(40)"), "train.md", "exec"), {})
        else:
            for line in text.strip().splitlines():
                with pytest.raises(SystemExit) as stopped:
                    main(shlex.split(line)[1:])
                assert not stopped.value.code, f"{line}\n{capsys.readouterr().err}"
                done.append(line.split()[1])

    assert done == ["train", "tokenize", "train"]
    assert (tmp_path / "made.png").is_file()
