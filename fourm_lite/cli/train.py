"""`fourm-lite train`, a recipe or its stages, and `add-embedding`, one more modality of a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import (
    evaluate,
    evaluate_classes,
    finetune,
    models,
    prepare,
)
from fourm_lite.cli import options as opt
from fourm_lite.cli.options import present
from fourm_lite.cli.output import (
    deliver,
    deliver_some,
    print_facts,
    progress,
    require_folder,
    say,
)
from fourm_lite.cli.pseudolabel import pseudolabel
from fourm_lite.errors import ConfigError, check_choice

if TYPE_CHECKING:
    from fourm_lite.training.staged import Stage


def add_embedding(
    name: str,
    embedder: Annotated[str, typer.Option("--embedder", "-e")],
    photos: Annotated[list[Path], typer.Option("--photos", "-p", callback=present)],
    out: Annotated[Path, typer.Option("--out", "-o")],
    model: opt.FourM = "mini",
    train: str = "tables",
    steps: Annotated[int, typer.Option(min=1)] = 300,
    lr: float = 2e-3,
    tokens: Annotated[int | None, typer.Option(min=1)] = None,
    codebook_size: Annotated[int | None, typer.Option(min=2)] = None,
    tokenizer_steps: Annotated[int | None, typer.Option(min=1)] = None,
    split: str | None = None,
    held_out: str | None = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 48,
    seed: opt.Seed = 0,
    title: str = "",
    licence: str = "",
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    as_json: opt.Json = None,
) -> None:
    """Make a modality of an embedding network: tokenizer, grown model, figures, card.

    Call it again to go on after a stop; what is done is skipped. The model that is grown is not
    changed.

    Args:
        name: The name that the new modality gets, such as my_network.
        embedder: Learn to predict this network's vectors: onnx:FILE, timm:NAME, hf:FOLDER_OR_ID.
        photos: Learn from these photos: a folder (with captions.jsonl or without), a .tar, .parquet
            or .jsonl. May be repeated.
        out: Write the widened model into this new folder.
        train: Train only the new 'tables' (old weights stay as they are) or 'all' weights.
        steps: Fine-tune the model for this many steps.
        lr: Train the new tables with this learning rate.
        tokens: Write a vector as this many codes; by default 16.
        codebook_size: Let codes have this many values; by default it follows the number of photos.
        tokenizer_steps: Train the tokenizer for this many steps; by default it follows the number
            of photos.
        split: Learn from this split of captions.jsonl; by default from train.
        held_out: Measure on these photos: a share such as 0.1, or a split's name.
        batch_size: Train on this many samples a step.
        title: Call the modality by this name on its card.
        licence: Write on the card that the result is under this.

    Raises:
        FourMError: a wrong name, too few photos, a network that gives no usable vectors
    """
    require_folder(out, "--out")
    from fourm_lite.add_embedding.register import register_embedding
    from fourm_lite.pipeline.given import with_text

    with progress("photos", stages=True) as told:
        added = register_embedding(
            name, embedder, photos, out=out, model=model,
            tokenizers=with_text(tokenizers, text_tokenizer), progress=told.tell,
            train=train, steps=steps, lr=lr, tokens=tokens, codebook_size=codebook_size,
            tokenizer_steps=tokenizer_steps, split=split, held_out=_share(held_out),
            batch_size=batch_size, seed=seed, title=title, licence=licence,
        )  # fmt: skip
    value = {"folder": added.folder, "skipped_stages": added.skipped, **added.report}
    deliver(value, as_json, lambda: _show_added(added))


def _share(text: str | None) -> str | float | None:
    """A share where it is a number, else the name of a split."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _show_added(added: Any) -> None:
    report = added.report
    photos, found = report["photos"], report["retrieval"]
    captions = {
        f"captions, {name}": f"R@1 {row['R@1']:.3f}  R@5 {row['R@5']:.3f}  R@10 {row['R@10']:.3f}"
        for name, row in found.get("caption", {}).items()
    }
    print_facts(
        {
            "modality": f"{added.modality.name}: {added.modality.max_tokens} codes of "
            f"{added.modality.vocab_size}",
            "photos": f"{photos['train']} learned, {photos['held_out']} held out",
            "done before": ", ".join(added.skipped) or None,
            **{f"tokenizer, {k}": v for k, v in report["tokenizer"].items()},
            **captions,
            "pixels, centred cosine": found.get("pixels", {}).get("cosine_centred"),
            "card": added.folder / "card.md",
        }
    )
    for skipped in photos["unreadable"]:
        say(f"left out: {skipped['uri']}: {skipped['reason']}")


STAGES: dict[str, Callable[..., None]] = {
    "convert": models.convert,
    "pseudolabel": pseudolabel,
    "tokenize": prepare.tokenize,
    "mix-photos": prepare.mix_photos,
    "name-classes": prepare.name_classes,
    "add-embedding": add_embedding,
    "spread": finetune.spread,
    "calibrate": finetune.calibrate,
    "evaluate retrieval": evaluate.retrieval,
    "evaluate any2any": evaluate.any2any,
    "evaluate tokenizers": evaluate.tokenizers,
    "evaluate zeroshot": evaluate_classes.zeroshot,
}
"""Verbs that a recipe may run: those that make or measure, and none that deletes or serves."""


def train(
    recipe: Annotated[Path, typer.Argument(callback=present)],
    resume: Annotated[bool, typer.Option("--resume")] = False,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o")] = None,
    as_json: opt.Json = None,
) -> None:
    """Train a tokenizer, a model, a joint space, a joint encoder, or all stages of a recipe.

    A recipe of stages goes on by itself where it was stopped, and skips what is done. On several
    GPUs: `accelerate launch -m fourm_lite train RECIPE` (docs/multi-gpu.md).

    Args:
        recipe: The recipe to train by: a TOML file such as tokenizers/rgb_mini/recipe.toml.
        resume: Go on where this run was stopped.
        steps: Train for this many steps, not the recipe's number.
        out: Write the run into this folder, not the recipe's.

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

    if os.environ.get("RANK", "0") == "0":  # of the processes of `accelerate launch` one speaks
        deliver_some(facts, left_out, as_json)


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
    check_choice(f"the verb of stage {stage.name!r}", stage.verb, of=STAGES)
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
    from fourm_lite.io.files import alone, write_whole
    from fourm_lite.training.staged import StagedRecipe, card, run_stages

    recipe = StagedRecipe.of(tables, out=out)
    with alone(recipe.out):
        found, skipped = run_stages(recipe, run_stage)
        if recipe.title:
            write_whole(recipe.out / "card.md", card(recipe, found))
    return {"folder": recipe.out, "stages": len(found), "done before": ", ".join(skipped) or None}
