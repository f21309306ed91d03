"""`fourm-lite train`: a recipe is a training, or stages, of which each is a training or a verb."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import (
    evaluate_classes,
    evaluate_generation,
    evaluate_search,
    finetune,
    models,
    prepare,
)
from fourm_lite.cli.add_embedding import add_embedding
from fourm_lite.cli.options import Json, present
from fourm_lite.cli.output import (
    deliver,
    left_out_facts,
    print_facts,
    progress,
    say,
    say_left_out,
)
from fourm_lite.cli.pseudolabel import pseudolabel
from fourm_lite.errors import ConfigError, suggest

if TYPE_CHECKING:
    from fourm_lite.training.staged import Stage

STAGES: dict[str, Callable[..., None]] = {
    "convert": models.convert,
    "pseudolabel": pseudolabel,
    "tokenize": prepare.tokenize,
    "mix-photos": prepare.mix_photos,
    "add-embedding": add_embedding,
    "spread": finetune.spread,
    "calibrate": finetune.calibrate,
    "evaluate retrieval": evaluate_search.retrieval,
    "evaluate any2any": evaluate_generation.any2any,
    "evaluate tokenizers": evaluate_generation.tokenizers,
    "evaluate zeroshot": evaluate_classes.zeroshot,
}
"""Verbs that a recipe may run: those that make or measure, and none that deletes or serves."""


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="The recipe to train by: a TOML file such as tokenizers/rgb_mini/recipe.toml.",
            callback=present,
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where this run was stopped.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Train for this many steps, not the recipe's number.", min=1),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the run into this folder, not the recipe's."),
    ] = None,
    as_json: Json = None,
) -> None:
    """Train a tokenizer, a model, a joint space, a joint encoder, or all stages of a recipe.

    A recipe of stages goes on by itself where it was stopped, and skips what is done. On several
    GPUs: `accelerate launch -m fourm_lite train RECIPE` (docs/multi-gpu.md).

    Raises:
        ConfigError: the recipe is wrong
        FourMError: there is a run already and --resume is missing, or the loss is not finite
    """
    from fourm_lite.io.recipe import read_toml
    from fourm_lite.photos.records import hearing

    told = read_toml(recipe)
    with hearing() as left_out:
        if "stages" in told:
            if steps is not None or resume:
                raise ConfigError(
                    "--steps and --resume are of one run; a recipe of stages goes on by itself, "
                    "and says the steps of each"
                )
            facts = _stages(told, out)
        else:
            facts = train_recipe(told, where=str(recipe), steps=steps, out=out, resume=resume)

    def show() -> None:
        print_facts({**facts, "left out": len(left_out) or None})
        say_left_out(left_out)

    if os.environ.get("RANK", "0") == "0":  # of the processes of `accelerate launch` one speaks
        deliver({**facts, "left_out": left_out_facts(left_out)}, as_json, show)


def run_stage(stage: Stage, place: Path) -> Mapping[str, Any]:
    """What a stage found; a training says its steps and its folder.

    Raises:
        ConfigError: no such verb, or it has no such option
    """
    say(f"stage {stage.name}", aside=True)
    if stage.recipe:
        return _trained(stage, place)
    function = _function(stage)
    from fourm_lite.io.recipe import arguments_of

    options = arguments_of(function, stage.options, where=f"stages.{stage.name}.options")
    function(**options)
    return {"verb": stage.verb}


def _function(stage: Stage) -> Callable[..., Any]:
    if stage.verb not in STAGES:
        raise ConfigError(
            f"stage {stage.name!r}: a recipe may run {', '.join(STAGES)}; got {stage.verb!r}."
            f"{suggest(stage.verb, STAGES)}"
        )
    return STAGES[stage.verb]


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


def _stages(tables: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    from fourm_lite.io.files import write_whole
    from fourm_lite.io.locks import alone
    from fourm_lite.training.staged import StagedRecipe, card, run_stages

    recipe = StagedRecipe.of(tables, out=out)
    with alone(recipe.out):
        found, skipped = run_stages(recipe, run_stage)
        if recipe.title:
            write_whole(recipe.out / "card.md", card(recipe, found))
    return {"folder": recipe.out, "stages": len(found), "done before": ", ".join(skipped) or None}
