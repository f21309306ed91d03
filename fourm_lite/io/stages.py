"""The record of a run of several stages: which are done, with which settings, what they found.

A second call skips what is done. A stage whose settings changed is made anew, and all after it; a
stage that was killed goes on from what it left in its own folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.files import remove_folder, storage_errors, write_json
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.names import check_name

RECORD, WORK = "stages.json", "work"
FORMAT = 1


@dataclass
class Stages:
    """The stages of one output folder, in their order.

    Units:
        entries: name -> settings, facts (None while it is unfinished), seconds
    """

    out: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, out: Path) -> Stages:
        """The record of a folder; a folder without one must be empty or absent.

        Raises:
            ConfigError: the folder holds something else, or a record of another format
        """
        path = out / RECORD
        if not path.is_file():
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise ConfigError(
                    f"--out expects a new folder or one that this command began, and {out} holds "
                    "other things; choose another folder"
                )
            return cls(out)
        try:
            record = read_json_object(path)
            if record["format"] != FORMAT:
                raise ConfigError(f"{path} is of format {record['format']}; update fourm_lite")
            return cls(out, _checked(record["stages"], path))
        except ConfigError:
            raise
        except (FourMError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error}); choose another folder") from error

    def settings(self, name: str) -> Mapping[str, Any] | None:
        """The settings that a stage was begun with."""
        return self.entries.get(name, {}).get("settings")

    def renew(
        self,
        name: str,
        former: Callable[[], Iterable[Mapping[str, Any]]],
        settings: Mapping[str, Any],
    ) -> None:
        """Notes settings in today's form where the stage was begun with the same in a former one.

        `former` gives the same settings as earlier versions wrote them; asked where today's differ.
        """
        begun = self.settings(name)
        if begun is not None and begun != settings and begun in list(former()):
            self.entries[name]["settings"] = dict(settings)
            self._write()

    @property
    def folder(self) -> Path:
        """Where stages keep what they need to go on; it may be deleted once all is done."""
        return self.out / WORK

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        work: Callable[[Path], Mapping[str, Any]],
    ) -> Mapping[str, Any]:
        """What a stage found: read from the record, or worked out in `work/<name>`."""
        wanted = json.loads(json.dumps(settings))
        entry = self.entries.get(name)
        if entry is not None and entry["settings"] != wanted:
            self._forget_from(name)
            entry = None
        if entry is not None and entry["facts"] is not None:
            self.skipped.append(name)
            return dict(entry["facts"])
        place = self.folder / name
        with storage_errors(place, kept="finished stages are kept"):
            place.mkdir(parents=True, exist_ok=True)
        self.entries[name] = {"settings": wanted, "facts": None, "seconds": 0.0}
        self._write()
        started = time.monotonic()
        facts = json.loads(json.dumps(work(place)))
        seconds = round(time.monotonic() - started, 1)
        self.entries[name] = {"settings": wanted, "facts": facts, "seconds": seconds}
        self._write()
        return dict(facts)

    def _forget_from(self, name: str) -> None:
        names = list(self.entries)
        gone = names[names.index(name) :]
        for later in gone:
            del self.entries[later]
        self._write()  # first: the record must not say done of what is being removed
        for later in gone:
            remove_folder(self.folder / later)

    def _write(self) -> None:
        write_json(self.out / RECORD, {"format": FORMAT, "stages": self.entries})


def _checked(stages: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a record; their names become folders that are emptied.

    Raises:
        ConfigError: a name is none, or an entry is not of the form that `run` writes
    """
    for name, entry in dict(stages).items():
        check_name(name, f"a stage in {path}")
        if not (
            isinstance(entry, dict)
            and {"settings", "facts"} <= set(entry)
            and isinstance(entry["settings"], dict)
            and isinstance(entry["facts"], dict | None)
        ):
            raise ConfigError(f"{path} is damaged at the stage {name!r}; choose another folder")
    return dict(stages)
