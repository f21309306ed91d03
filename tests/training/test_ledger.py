"""A run takes away what it made, and nothing else."""

from __future__ import annotations

import pytest

from fourm_lite.errors import ConfigError
from fourm_lite.training.checkpoints import begin_run


def test_files_of_others_beside_a_run_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("years of work")

    begin_run(tmp_path)
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text("{}")
    (tmp_path / "best" / "notes.txt").write_text("mine too")
    begin_run(tmp_path)

    assert (tmp_path / "mine.txt").is_file()
    assert (tmp_path / "best" / "notes.txt").is_file()
    assert not (tmp_path / "log.jsonl").exists()
    assert not (tmp_path / "best" / "best.json").exists()


@pytest.mark.parametrize("name", ["best", "final", "log.jsonl"])
def test_what_a_run_would_take_away_is_refused_where_no_run_made_it(tmp_path, name):
    own = tmp_path / name / "mine.txt" if "." not in name else tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("years of work")

    with pytest.raises(ConfigError, match="not made by fourm_lite"):
        begin_run(tmp_path)

    assert own.read_text() == "years of work"
