"""What a recipe does: a training, or stages, of which each is a training or a verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fourm_lite.cli.app import VERBS
from fourm_lite.cli.output import progress, say
from fourm_lite.errors import ConfigError, suggest
from fourm_lite.io.recipe import arguments_of
from fourm_lite.training.staged import Stage

STAGES = ("convert", "pseudolabel", "tokenize", "mix-photos", "add-embedding", "spread",
          "calibrate", "evaluate retrieval", "evaluate any2any", "evaluate tokenizers",
          "evaluate zeroshot")  # fmt: skip
"""Verbs that a recipe may run: those that make or measure, and none that deletes or serves."""


def run_stage(stage: Stage, place: Path) -> Mapping[str, Any]:
    """What a stage found; a training says its steps and its folder.

    Raises:
        ConfigError: no such verb, or it has no such option
    """
    say(f"stage {stage.name}", aside=True)
    if stage.recipe:
        return _trained(stage, place)
    function = _function(stage)
    options = arguments_of(function, stage.options, where=f"stages.{stage.name}.options")
    function(**options)
    return {"verb": stage.verb}


def _function(stage: Stage) -> Callable[..., Any]:
    if stage.verb not in STAGES:
        raise ConfigError(
            f"stage {stage.name!r}: a recipe may run {', '.join(STAGES)}; got {stage.verb!r}."
            f"{suggest(stage.verb, STAGES)}"
        )
    return VERBS[stage.verb].run


def _trained(stage: Stage, place: Path) -> Mapping[str, Any]:
    from fourm_lite.training.checkpoints import checkpoints

    course = dict(stage.recipe.get("train", {}))
    told = {**stage.recipe, "train": {**course, "out": str(place)}}
    where = f"stages.{stage.name}"
    facts = train_recipe(told, where=where, resume=bool(checkpoints(place)))
    if not facts["finished"]:
        raise ConfigError(
            f"stage {stage.name!r} stopped at step {facts['steps']}, as its max_seconds asks; "
            "start the recipe again to go on"
        )
    return {**facts, "folder": str(facts["folder"])}


def train_recipe(
    tables: Mapping[str, Any], *, resume: bool, where: str, **changes: Any
) -> dict[str, Any]:
    """Trains what one recipe describes; see `training.train.open_training` for the changes."""
    from fourm_lite.training.train import open_training

    with progress("data") as told:
        training = open_training(tables, where=where, progress=told.tell, **changes)
        result = training.run(resume=resume, progress=told.step)
    return {"steps": result.ledger.step, "finished": result.done, "folder": training.config.out}


def run_stages_of(tables: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    """Runs the stages of a recipe in turn, without those that are done."""
    from fourm_lite.io.files import write_whole
    from fourm_lite.io.locks import alone
    from fourm_lite.training.staged import StagedRecipe, card, run_stages

    recipe = StagedRecipe.of(tables, out=out)
    with alone(recipe.out):
        found, skipped = run_stages(recipe, run_stage)
        if recipe.title:
            write_whole(recipe.out / "card.md", card(recipe, found))
    return {"folder": recipe.out, "stages": len(found), "done before": ", ".join(skipped) or None}
