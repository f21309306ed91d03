"""A recipe of several stages: what each does, and where it keeps what it makes.

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
since this part knows no verbs. Done stages are skipped; `io.stages` keeps the record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError, suggest
from fourm_lite.io.recipe import from_dict
from fourm_lite.io.stages import Stages
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
