"""`fourm-lite train`: what a recipe describes; stopped at any time, it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import left_out_facts, print_facts, print_json, say_left_out
from fourm_lite.cli.staged import run_stage, train_recipe
from fourm_lite.cli.words import Argument, Option
from fourm_lite.errors import ConfigError


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
            facts = train_recipe(told, where=str(recipe), steps=steps, out=out, resume=resume)
    if as_json:
        print_json({**facts, "left_out": left_out_facts(left_out)})
    else:
        print_facts({**facts, "left out": len(left_out) or None})
        say_left_out(left_out)


def _stages(told: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    from fourm_lite.io.files import write_whole
    from fourm_lite.io.locks import alone
    from fourm_lite.training.staged import StagedRecipe, card, run_stages

    recipe = StagedRecipe.of(told, out=out)
    with alone(recipe.out):
        found, skipped = run_stages(recipe, run_stage)
        if recipe.title:
            write_whole(recipe.out / "card.md", card(recipe, found))
    return {"folder": recipe.out, "stages": len(found), "done before": ", ".join(skipped) or None}
