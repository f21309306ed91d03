"""`fourm-lite train`: what a recipe describes; stopped at any time, it goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import left_out_facts, print_facts, print_json, say_left_out
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.words import Argument, Option
from fourm_lite.errors import ConfigError
from fourm_lite.names import shown


def train(
    recipe: Annotated[Path, Argument("TOML file, such as tokenizers/rgb_mini/recipe.toml")],
    resume: Annotated[bool, Option("--resume", help="Go on where the run was stopped.")] = False,
    steps: Annotated[
        int | None, Option("--steps", help="Instead of the recipe's number of steps.", min=1)
    ] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Instead of the recipe's.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Train a tokenizer, a model, a joint space, a joint encoder, or all stages of a recipe.

    A recipe of stages goes on by itself where it was stopped, and skips what is done.

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
            given = {"steps": steps, "out": out}
            changes = {name: value for name, value in given.items() if value is not None}
            facts = train_recipe(told, changes, resume=resume, where=str(recipe))
    if as_json:
        print_json({**facts, "left_out": left_out_facts(left_out)})
    else:
        print_facts({**facts, "left out": len(left_out) or None})
        say_left_out(left_out)


def train_recipe(
    told: Mapping[str, Any], changes: Mapping[str, Any], *, resume: bool, where: str
) -> dict[str, Any]:
    """Trains what one recipe describes; `changes` replace fields of its `[train]`.

    Raises:
        ConfigError: the recipe is wrong; `where` says which
    """
    from fourm_lite.io.recipe import from_dict
    from fourm_lite.training.loop import fit

    kind, opened = _kind(told)
    try:
        described = from_dict(kind, told)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    config = replace(described.train, **changes)
    task, stream = opened(described)
    result = fit(task, stream, config, resume=resume, progress=_told)
    return {"steps": result.ledger.step, "finished": result.done, "folder": config.out}


def _kind(told: Mapping[str, Any]) -> tuple[Any, Any]:
    """The dataclass of a recipe, by its tables, and what makes its task and its stream."""
    from fourm_lite.training.joint import JointRecipe, joint_training
    from fourm_lite.training.joint_space import JointSpaceRecipe, joint_space_training
    from fourm_lite.training.recipes import ModelRecipe, pretraining
    from fourm_lite.training.tokenizer_recipes import TokenizerRecipe, tokenizer_training

    def space(recipe: JointSpaceRecipe) -> Any:
        with count_progress("photos") as counts:
            return joint_space_training(recipe, progress=counts.tell)

    kinds = {
        "joint": (JointRecipe, joint_training),
        "joint_space": (JointSpaceRecipe, space),
        "tokenizer": (TokenizerRecipe, tokenizer_training),
    }
    return next((kind for name, kind in kinds.items() if name in told), (ModelRecipe, pretraining))


def _stages(told: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    from fourm_lite.cli.staged import run_stage
    from fourm_lite.io.files import write_whole
    from fourm_lite.io.locks import alone
    from fourm_lite.training.staged import StagedRecipe, card, run_stages

    recipe = StagedRecipe.of(told, out=out)
    with alone(recipe.out):
        found, skipped = run_stages(recipe, run_stage)
        if recipe.title:
            write_whole(recipe.out / "card.md", card(recipe, found))
    return {"folder": recipe.out, "stages": len(found), "done before": ", ".join(skipped) or None}


def _told(step: int, steps: int, numbers: Mapping[str, float]) -> None:
    if sys.stderr.isatty():
        told = "  ".join(f"{k} {v:.3f}" for k, v in numbers.items() if k.startswith("loss"))
        sys.stderr.write("\r" + shown(f"{step} of {steps}  {told}")[:160])
        sys.stderr.flush()
