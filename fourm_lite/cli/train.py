"""`fourm-lite train`: a tokenizer or a model by its recipe; stopped at any time, it goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import left_out_facts, print_facts, print_json, say_left_out
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.words import Argument, Option
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
    """Train a tokenizer, a model, a joint space, or a joint encoder of words and regions.

    Raises:
        ConfigError: the recipe is wrong
        FourMError: there is a run already and --resume is missing, or the loss is not finite
    """
    from fourm_lite.io.recipe import read_toml
    from fourm_lite.photos.records import hearing
    from fourm_lite.training.joint import JointRecipe, joint_training
    from fourm_lite.training.joint_space import JointSpaceRecipe, joint_space_training
    from fourm_lite.training.loop import fit
    from fourm_lite.training.recipes import ModelRecipe, pretraining
    from fourm_lite.training.tokenizer_recipes import TokenizerRecipe, tokenizer_training

    given = {"steps": steps, "out": out}
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    told = read_toml(recipe)
    with hearing() as left_out:
        if "joint" in told:
            joint = JointRecipe.read(recipe)
            config = replace(joint.train, **changes)
            pairs, stream = joint_training(joint)
            result = fit(pairs, stream, config, resume=resume, progress=_told)
        elif "joint_space" in told:
            space = JointSpaceRecipe.read(recipe)
            config = replace(space.train, **changes)
            with count_progress("photos") as counts:
                heads, captioned = joint_space_training(space, progress=counts.tell)
            result = fit(heads, captioned, config, resume=resume, progress=_told)
        elif "tokenizer" in told:
            tokenizer = TokenizerRecipe.read(recipe)
            config = replace(tokenizer.train, **changes)
            task, values = tokenizer_training(tokenizer)
            result = fit(task, values, config, resume=resume, progress=_told)
        else:
            model = ModelRecipe.read(recipe)
            config = replace(model.train, **changes)
            masked, samples = pretraining(model)
            result = fit(masked, samples, config, resume=resume, progress=_told)
    facts = {"steps": result.ledger.step, "finished": result.done, "folder": config.out}
    if as_json:
        print_json({**facts, "left_out": left_out_facts(left_out)})
    else:
        print_facts({**facts, "left out": len(left_out) or None})
        say_left_out(left_out)


def _told(step: int, steps: int, numbers: Mapping[str, float]) -> None:
    if sys.stderr.isatty():
        told = "  ".join(f"{k} {v:.3f}" for k, v in numbers.items() if k.startswith("loss"))
        sys.stderr.write("\r" + shown(f"{step} of {steps}  {told}")[:160])
        sys.stderr.flush()
