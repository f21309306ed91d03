"""The log of a training run: a JSON object a line, cut back where a resumed run goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourm_lite.io.files import storage_errors, write_whole
from fourm_lite.training.checkpoints import KEPT, Ledger

log = logging.getLogger(__name__)


class History:
    """The log of a run: a JSON object a line, always; trackio too, where wanted and installed."""

    def __init__(self, path: Path, project: str = "") -> None:
        self.path, self.project = path, project
        self._file: Any = None
        self._tracker: Any = None

    def open(self, step: int, is_main: bool) -> None:
        """Goes on after `step`: lines of later steps, which will come again, are removed."""
        if not is_main:
            return
        text = self.path.read_text("utf-8", "replace") if self.path.is_file() else ""
        lines = text.splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_whole(self.path, "".join(line + "\n" for line in kept), kept=KEPT)
        with storage_errors(self.path, kept=KEPT):
            self._file = self.path.open("a", encoding="utf-8")
        self._tracker = _trackio(self.project)

    def write(self, ledger: Ledger, numbers: Mapping[str, float]) -> None:
        """Adds one line."""
        if self._file is None or not numbers:
            return
        where = {"step": ledger.step, "epoch": round(ledger.epoch, 6), "samples": ledger.samples}
        line = {**where, "seconds": round(ledger.seconds, 3), **numbers}
        with storage_errors(self.path, kept=KEPT):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._tracker is not None:
            self._tracker.log(dict(numbers), step=ledger.step)

    def close(self) -> None:
        """Ends the log."""
        if self._file is not None:
            with storage_errors(self.path, kept=KEPT):
                self._file.close()
        if self._tracker is not None:
            self._tracker.finish()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62  # a line cut short by a crash


def _trackio(project: str) -> Any:
    if not project:
        return None
    try:
        import trackio
    except ImportError:
        log.warning("trackio is not installed; the run is logged to log.jsonl alone")
        return None
    trackio.init(project=project)
    return trackio
