"""Commands as a user types them, run in this process."""

from __future__ import annotations

import pytest

from fourm_lite.cli import main


def exit_code(*words) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def run(capsys, *words):
    """Exit code, standard output and standard error of a command."""
    code = exit_code(*words)
    out, err = capsys.readouterr()
    return code, out, err
