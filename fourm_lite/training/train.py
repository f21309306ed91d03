"""What `fourm-lite train` runs: from the tables of a recipe to what it trains.

Read on from here: the recipe of its kind, the task and the data that this becomes, and `loop.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError
from fourm_lite.io.recipe import from_dict
from fourm_lite.progress import StageProgress, StepProgress
from fourm_lite.training.batches import Stream
from fourm_lite.training.joint_encoder import JointRecipe, joint_training
from fourm_lite.training.joint_space import JointSpaceRecipe, joint_space_training
from fourm_lite.training.loop import FitResult, Task, TrainConfig, fit
from fourm_lite.training.pretraining import pretraining
from fourm_lite.training.recipes import ModelRecipe
from fourm_lite.training.tokenizer_recipes import TokenizerRecipe, tokenizer_training

Prepare = Callable[[Any, StageProgress | None], tuple[Task, Stream]]
KINDS: dict[str, tuple[type[Any], Prepare]] = {
    "joint": (JointRecipe, lambda recipe, _: joint_training(recipe)),
    "joint_space": (JointSpaceRecipe, lambda r, progress: joint_space_training(r, progress)),
    "tokenizer": (TokenizerRecipe, lambda recipe, _: tokenizer_training(recipe)),
    "model": (ModelRecipe, lambda recipe, _: pretraining(recipe)),
}
"""By the table that recipes of one kind alone have; the last is meant where there is none."""


@dataclass(frozen=True)
class Training:
    """What a recipe trains, on what, and how long."""

    task: Task
    data: Stream
    config: TrainConfig

    def run(self, *, resume: bool = False, progress: StepProgress | None = None) -> FitResult:
        """Trains; see `loop.fit`."""
        return fit(self.task, self.data, self.config, resume=resume, progress=progress)


def open_training(
    tables: Mapping[str, Any],
    *,
    where: str = "",
    steps: int | None = None,
    out: Path | None = None,
    progress: StageProgress | None = None,
) -> Training:
    """The training of a tokenizer, a model, a joint space or a joint encoder, as a recipe says.

    Args:
        tables: of the recipe, as `io.recipe.read_toml` gives them
        where: what the recipe is called in errors
        steps: instead of the recipe's number of steps
        out: instead of the recipe's folder
        progress: called as the data are made ready

    Raises:
        ConfigError: the recipe is wrong
        FourMError: its data cannot be read
    """
    kind, prepare = next((KINDS[key] for key in KINDS if key in tables), KINDS["model"])
    try:
        recipe = from_dict(kind, tables)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error
    changes = {"steps": steps, "out": out}
    config = replace(recipe.train, **{k: v for k, v in changes.items() if v is not None})
    return Training(*prepare(recipe, progress), config)
