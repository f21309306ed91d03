"""`fourm-lite generate`: any modalities from any others, as files, pictures and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import dtype_of, pair, present, tell_precision
from fourm_lite.cli.output import Told, deliver, print_facts, progress, require_folder, say
from fourm_lite.errors import ConfigError, FourMError

if TYPE_CHECKING:
    from fourm_lite.pipeline.pipeline import FourMPipeline
    from fourm_lite.show.generated import Job


def generate(
    model: opt.FourM,
    inputs: Annotated[opt.Texts, typer.Option("--input", "-i")] = None,
    items: Annotated[Path | None, typer.Option(callback=present)] = None,
    targets: Annotated[opt.Texts, typer.Option("--target", "-t")] = None,
    plan: Annotated[str | None, typer.Option("--plan", "-p")] = None,
    think: opt.Think = None,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    tokens: Annotated[bool, typer.Option("--tokens")] = False,
    seed: opt.Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("generated"),
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    as_json: opt.Json = None,
) -> None:
    """Generate any modalities from any others.

    Each item gets its own files (a picture or a text for each target, a contact sheet,
    result.json). Items of --items that are finished already are not made again, unless a file,
    the plan, the model or a tokenizer has changed since. A target without a tokenizer is written
    as token numbers with the reason, which is an error unless --tokens asks for it.

    Args:
        inputs: Generate from this value: rgb=photo.jpg, caption='a dog'. May be repeated.
        items: Generate from each line of this JSONL file: {'id': .., 'rgb': ..}.
        targets: Generate this modality. May be repeated.
        plan: Generate what this plan says, in its order: a TOML file or a shipped plan.
        tokens: Accept token numbers where there is no tokenizer to decode them.
        out: Write the results into this folder.

    Raises:
        FourMError: the request cannot be carried out, or a target has no tokenizer
    """
    jobs = _jobs(inputs or [], items, out)
    from fourm_lite.pipeline.given import with_text
    from fourm_lite.pipeline.pipeline import FourMPipeline
    from fourm_lite.show.generated import identity

    chosen = _plan(targets or (), plan)
    given = with_text(tokenizers, text_tokenizer)
    tell_precision(dtype, model, device)
    pipe = FourMPipeline.from_pretrained(model, given, device=device, dtype=dtype_of(dtype))
    found = _require(pipe, [item for _, item in jobs], targets or (), chosen, tokens)
    request: dict[str, Any] = {"model": model, "targets": targets or [], "plan": plan, "seed": seed}
    request |= {n: v for n, v in (("dtype", dtype), ("think", think)) if v}
    if items is not None:
        request["content"] = identity(model, plan, pipe, found)
    make = {"targets": targets or (), "plan": plan, "seed": seed, "allow_tokens": tokens}
    make |= {"think": think or ()}
    done = _results(jobs, pipe, request, make)
    deliver(done if items is not None else done[0], as_json, lambda: _show(jobs, done))
    _check_decoded(done, tokens)


def plan(
    source: Annotated[str | None, typer.Argument()] = None,
    as_json: opt.Json = None,
) -> None:
    """Show the targets of a plan in order, and how each is decoded.

    Args:
        source: The plan to show: a TOML file, or a shipped one such as "rgb2all"; without it the
            names of the shipped ones are listed.

    Raises:
        ConfigError: the plan cannot be read
    """
    from dataclasses import asdict

    from fourm_lite.sampling.plan import Plan, shipped_plans

    if source is None:
        names = shipped_plans()
        deliver(names, as_json, lambda: say("\n".join(names), keep="\n"))
        return
    found = Plan.from_toml(source)
    deliver(asdict(found), as_json, lambda: say(found, keep="\n"))


def _jobs(inputs: Sequence[str], items: Path | None, out: Path) -> list[Job]:
    """What is to be generated from: the one item of --input, or those of --items.

    Raises:
        ConfigError: an item cannot be read, two items have one folder, or a folder cannot be made
    """
    from fourm_lite.modalities.plain_items import is_photo
    from fourm_lite.show.generated import read_items

    if items is None:
        item = dict(pair(text, "--input") for text in inputs)
        for value in item.values():
            is_photo(value, as_words="more than one of them")  # told before the model is opened
        jobs: list[Job] = [(out, dict(item))]
    elif inputs:
        raise ConfigError("give --input or --items, not both")
    elif not items.is_file():
        raise ConfigError(f"--items expects a JSONL file, got {items}")
    else:
        jobs = read_items(items, out)
    for folder, _ in jobs:
        require_folder(folder, "--out")
    return jobs


def _plan(targets: Sequence[str], plan: str | None) -> Any:
    """The plan that is asked for, read before the model is."""
    from fourm_lite.sampling.plan import Plan

    if not targets and plan is None:
        raise FourMError("name at least one --target, or give a --plan")
    return None if plan is None else Plan.from_toml(plan)


def _require(
    pipe: FourMPipeline,
    items: Sequence[Mapping[str, Any]],
    targets: Sequence[str],
    plan: Any,
    tokens: bool,
) -> dict[str, Path]:
    """Where the tokenizers of all items lie, before anything is generated."""
    from fourm_lite.show.generated import values_of

    chosen = pipe.plan(targets, plan)
    return pipe.require([values_of(item) for item in items], () if tokens else chosen)


def _results(
    jobs: Sequence[Job], pipe: FourMPipeline, request: Mapping[str, Any], make: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What result.json says of each item, made now unless it is there already."""
    from fourm_lite.show.generated import digests, finished, values_of, write_item

    is_batch, done = "content" in request, []
    with progress("items") as told:
        for number, (folder, item) in enumerate(jobs):
            asked = {**request, "inputs": {k: str(v) for k, v in item.items()}}
            if is_batch:
                asked["files"] = digests(item)
            result = finished(folder, asked) if is_batch else None
            if result is None:
                step, token = _following(told, f"item {number + 1} of {len(jobs)}")
                values = pipe.generate(values_of(item), **make, on_step=step, on_token=token)
                result = write_item(folder, item, values, asked, pipe.model.config.inputs)
            done.append(result)
    return done


def _following(told: Told, item: str) -> tuple[Any, Callable[[int, int], None]]:
    """Shows the steps, and the tokens, of one item."""

    def step(result: Any, done: int, total: int) -> None:
        told.tell(f"{item}: {result.step.target}", done, total)

    return step, told.of(f"{item}: tokens")


def _show(jobs: Sequence[Job], done: Sequence[Mapping[str, Any]]) -> None:
    for (folder, _), result in zip(jobs, done, strict=True):
        print_facts({"sheet": folder / result["sheet"], **_told(result["outputs"])})


def _told(outputs: Mapping[str, Any]) -> dict[str, str]:
    """Outputs in words: texts, classes, colours, numbers, and why something is only tokens."""
    texts = {k: v["text"] for k, v in outputs.items() if "text" in v}
    for name, output in outputs.items():
        rows = [f"{key['name']} {key['value']}" for key in output.get("legend", ()) if key["value"]]
        texts |= {name: ", ".join(rows)} if rows else {}
    undecoded = {
        k: f"token numbers only: {v['reason']}" for k, v in outputs.items() if "reason" in v
    }
    return texts | undecoded


def _check_decoded(results: Sequence[Mapping[str, Any]], tokens: bool) -> None:
    """Refuses to call token numbers a result, unless they were asked for."""
    reasons = {
        name: output["reason"]
        for result in results
        for name, output in result["outputs"].items()
        if "reason" in output
    }
    if reasons and not tokens:
        raise FourMError(
            f"{', '.join(reasons)}: written as token numbers, not as values. "
            f"{next(iter(reasons.values()))} Or say --tokens, if token numbers are what you want"
        )
