"""A recipe of several stages: what each does, where it keeps what it makes, and which are done.

    [places]
    data = "../shared/data/captions"

    [[stages]]
    name = "encoder"
    verb = "convert"
    options = { source = "efficientnet-lite2.pth", folder = "{encoder}" }

    [[stages]]
    name = "space"
    [stages.recipe.joint_space]
    image = "timm:{encoder}"

A stage runs a verb of the command line with its options, or trains what its own `recipe` says. A
name in braces is a place: of `[places]`, or the folder of a stage. What runs a stage is handed in,
since this part knows no verbs.

The record says which stages are done, with which settings, and what they found. A second call skips
these; a stage whose settings changed is made anew, and all after it; one that was killed goes on
from what it left in its own folder.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError, FourMError, suggest
from fourm_lite.io.files import remove_folder, storage_errors, write_json
from fourm_lite.io.recipe import from_dict
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.names import check_name

_PLACE = re.compile(r"\{(\w+)\}")
Run = Callable[["Stage", Path], Mapping[str, Any]]
"""Runs one stage, whose places are filled in; its folder is kept between tries."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something that the weights were made from, for the card.

    Units:
        used_for: in a few words
    """

    name: str
    terms: str
    used_for: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Units:
        verb: of the command line, "pseudolabel"; options: its arguments by their names in Python
        recipe: of `fourm-lite train`, in place of a verb
    """

    name: str
    verb: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what can be no stage."""
        check_name(self.name, "the name of a stage")
        if not re.fullmatch(r"\w+", self.name):
            raise ConfigError(f"the name of a stage is a word, as {{name}} names it; got "
                              f"{self.name!r}")  # fmt: skip
        if bool(self.verb) == bool(self.recipe) or (self.recipe and self.options):
            raise ConfigError(
                f"stage {self.name!r} needs either a `verb` with its `options` or a `recipe`"
            )


@dataclass(frozen=True, kw_only=True)
class StagedRecipe:
    """Stages in their order.

    Units:
        out: folder of the record and of all stages
        places: name -> path, for stages to name in braces
        added: stages after `stages`, which may be those of a base
        title, sources, remarks: for the card that is written at the end; "" writes none
    """

    out: Path
    stages: tuple[Stage, ...]
    places: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    licence: str = ""
    remarks: str = ""
    sources: tuple[Source, ...] = ()
    added: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        """Joins the stages; refuses names that stand twice, and places that there are not."""
        object.__setattr__(self, "stages", self.stages + self.added)
        object.__setattr__(self, "added", ())
        names = [*self.places, *(s.name for s in self.stages)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{twice[0]!r} names two stages or places")
        if not self.stages:
            raise ConfigError("a recipe of stages needs at least one")
        known = list(self.places)
        for stage in self.stages:
            known.append(stage.name)
            for name in _named([dict(stage.options), dict(stage.recipe)]):
                if name not in known:
                    raise ConfigError(
                        f"stage {stage.name!r} names the place {{{name}}}, and before it there "
                        f"are {known}.{suggest(name, known)}"
                    )

    @classmethod
    def of(cls, told: Mapping[str, Any], *, out: Path | None = None) -> StagedRecipe:
        """The recipe of a file that was read; `out` in place of its own."""
        return from_dict(cls, {**told, "out": out} if out is not None else told)

    def folder(self, stage: str) -> Path:
        """Where a stage keeps what it makes."""
        return Stages(self.out).folder / stage

    def filled(self, stage: Stage) -> Stage:
        """The stage with its places filled in."""
        places = {s.name: str(self.folder(s.name)) for s in self.stages}
        places |= {name: str(Path(place).expanduser()) for name, place in self.places.items()}
        fill = lambda value: _filled(value, places)  # noqa: E731
        return Stage(
            name=stage.name, verb=stage.verb, options=fill(stage.options), recipe=fill(stage.recipe)
        )


def run_stages(recipe: StagedRecipe, run: Run) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """What each stage found, and which of them were done before this call.

    Raises:
        ConfigError: the folder holds something else
        and what the stages themselves raise; what was done before is kept
    """
    stages = Stages.open(recipe.out)
    found = {}
    for stage in recipe.stages:
        filled = recipe.filled(stage)
        settings = {"verb": stage.verb, "options": filled.options, "recipe": filled.recipe}
        found[stage.name] = stages.run(stage.name, settings, partial(run, filled))
    return found, stages.skipped


def card(recipe: StagedRecipe, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The card of what was made: title, terms, sources, and what the stages found."""
    lines = ["---", "license: other", f"license_name: {recipe.licence}", "---"]
    lines = [*(lines if recipe.licence else []), f"# {recipe.title}", "", recipe.remarks, ""]
    lines += ["| source | terms | used for |", "| --- | --- | --- |"]
    lines += [f"| {s.name} | {s.terms} | {s.used_for} |" for s in recipe.sources]
    lines += ["", "| stage | found |", "| --- | --- |"]
    for name, facts in found.items():
        told = "; ".join(f"{k}: {v}" for k, v in facts.items() if isinstance(v, int | float | str))
        lines.append(f"| {name} | {told} |")
    return "\n".join(lines) + "\n"


def _named(value: Any) -> list[str]:
    """The names in braces anywhere in a value."""
    if isinstance(value, str):
        return _PLACE.findall(value)
    if isinstance(value, Mapping):
        return [name for v in value.values() for name in _named(v)]
    return [n for v in value for n in _named(v)] if isinstance(value, list | tuple) else []


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _PLACE.sub(lambda m: places[m[1]], value)
    if isinstance(value, Mapping):
        return {key: _filled(v, places) for key, v in value.items()}
    return [_filled(v, places) for v in value] if isinstance(value, list | tuple) else value


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
