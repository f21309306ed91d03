"""`fourm-lite generate`: any modalities from any others, as files, pictures and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fourm_lite.cli.generate_items import (
    Job,
    digests,
    file_named,
    identity,
    read_jobs,
    values_of,
)
from fourm_lite.cli.output import print_facts, print_json
from fourm_lite.cli.progress import step_progress
from fourm_lite.cli.search_options import TextTokenizer, Tokenizers
from fourm_lite.cli.words import Option
from fourm_lite.errors import FourMError
from fourm_lite.io.files import remove_leftovers, write_whole
from fourm_lite.io.locks import alone

if TYPE_CHECKING:
    from fourm_lite.pipeline.pipeline import FourMPipeline

RESULT = "result.json"


def generate(
    model: Annotated[str, Option("--model", "-m", help="Folder, file, hub id or shipped name.")],
    inputs: Annotated[
        list[str] | None,
        Option("--input", "-i", help="What is given: rgb=photo.jpg, caption='a dog'. Repeatable."),
    ] = None,
    items: Annotated[
        Path | None,
        Option("--items", help="JSONL file with an item a line: {'id': .., 'rgb': ..}."),
    ] = None,
    targets: Annotated[
        list[str] | None, Option("--target", "-t", help="What to generate. Repeatable.")
    ] = None,
    plan: Annotated[
        str | None, Option("--plan", "-p", help="TOML file or shipped plan: how, in which order.")
    ] = None,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    tokens: Annotated[
        bool, Option("--tokens", help="Token numbers will do where there is no tokenizer.")
    ] = False,
    seed: Annotated[int, Option("--seed", help="Same seed, same result.")] = 0,
    out: Annotated[Path, Option("--out", "-o", help="Folder for the results.")] = Path("generated"),
    device: Annotated[str | None, Option("--device", help="cpu, cuda, ...")] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Generate any modalities from any others.

    Each item gets its own files (a picture or a text for each target, a contact sheet,
    result.json). Items of --items that are finished already are not made again, unless a file,
    the plan, the model or a tokenizer has changed since. A target without a tokenizer is written
    as token numbers with the reason, which is an error unless --tokens asks for it.

    Raises:
        FourMError: the request cannot be carried out, or a target has no tokenizer
    """
    from fourm_lite.pipeline.pipeline import FourMPipeline
    from fourm_lite.pipeline.tokenizers import with_text

    jobs = read_jobs(inputs or [], items, out)
    given = with_text(tokenizers, text_tokenizer)
    pipe = FourMPipeline.from_pretrained(model, given, device=device)
    found = _require(pipe, [item for _, item in jobs], targets or (), plan, tokens)
    request: dict[str, Any] = {"model": model, "targets": targets or [], "plan": plan, "seed": seed}
    if items is not None:
        request["content"] = identity(model, plan, pipe, found)
    make = {"targets": targets or (), "plan": plan, "seed": seed, "allow_tokens": tokens}
    done = _results(jobs, pipe, request, make)
    if as_json:
        print_json(done if items is not None else done[0])
    else:
        for (folder, _), result in zip(jobs, done, strict=True):
            print_facts({"sheet": folder / result["sheet"], **_told(result["outputs"])})
    _check_decoded(done, tokens)


def _results(
    jobs: Sequence[Job], pipe: FourMPipeline, request: Mapping[str, Any], make: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What result.json says of each item, made now unless it is there already."""
    is_batch, done = "content" in request, []
    for number, (folder, item) in enumerate(jobs):
        asked = {**request, "inputs": {k: str(v) for k, v in item.items()}}
        if is_batch:
            asked["files"] = digests(item)
        result = _finished(folder, asked) if is_batch else None
        if result is None:
            with step_progress(f"item {number + 1} of {len(jobs)}") as progress:
                values = pipe.generate(
                    values_of(item), **make, on_step=progress.step, on_token=progress.token
                )
            result = write_item(folder, item, values, asked)
        done.append(result)
    return done


def _require(
    pipe: FourMPipeline,
    items: Sequence[Mapping[str, Any]],
    targets: Sequence[str],
    plan: str | None,
    tokens: bool,
) -> dict[str, Path]:
    """Where the tokenizers of all items lie, before anything is generated."""
    from fourm_lite.sampling.plan import Plan

    if not targets and plan is None:
        raise FourMError("name at least one --target, or give a --plan")
    chosen = pipe.plan(targets, None if plan is None else Plan.from_toml(plan))
    return pipe.require([values_of(item) for item in items], () if tokens else chosen)


def _told(outputs: Mapping[str, Any]) -> dict[str, str]:
    """What is said of outputs that are no picture: texts, and why something is only tokens."""
    texts = {k: v["text"] for k, v in outputs.items() if "text" in v}
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


def _finished(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result that is there already, if it answers the same request."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("request") == asked else None


def write_item(
    folder: Path, item: Mapping[str, Any], values: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the files of one item; result.json comes last and makes them count."""
    with alone(folder, wait=True):  # files of two requests must not stand side by side
        remove_leftovers(folder)
        return _write_item(folder, item, values, asked)


def _write_item(
    folder: Path, item: Mapping[str, Any], values: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    from fourm_lite.modalities.pictures import decode, png
    from fourm_lite.show.contact_sheet import Cell, contact_sheet

    cells, outputs = [], {}
    for name, value in item.items():
        shown: Any = str(value)
        if photo := file_named(value):
            try:
                shown = decode(photo)
            except FourMError:
                shown = photo.name
        cells.append(Cell(f"given: {name}", shown))
    for name, result in values.items():
        stem = name.replace("@", "_").replace("/", "_")
        is_text = isinstance(result.picture, str)
        file = f"{stem}.txt" if is_text else f"{stem}.png"
        write_whole(folder / file, result.picture.encode() if is_text else png(result.picture))
        outputs[name] = {**result.to_json(), "file": file}
        if (features := _features(result.value)) is not None:
            write_whole(folder / f"{stem}.npy", features)
            outputs[name]["array"] = f"{stem}.npy"
        cells.append(Cell(name, result.picture))
    write_whole(folder / "sheet.png", png(contact_sheet(cells)))
    result = {"request": dict(asked), "outputs": outputs, "sheet": "sheet.png"}
    write_whole(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False))
    return result


def _features(value: Any) -> bytes | None:
    """The .npy file of vectors and feature maps, which no picture holds."""
    import numpy as np
    import torch

    from fourm_lite.modalities.array_codecs import FeatureCodec

    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return None
    is_picture = value.ndim == 3 and value.shape[0] in (1, 3)
    return None if is_picture else FeatureCodec().write(torch.from_numpy(value))
