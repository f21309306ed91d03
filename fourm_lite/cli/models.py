"""`fourm-lite info`, `download`, `convert`, `export`, `demo`: models seen, fetched and changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli.options import Json, present
from fourm_lite.cli.output import deliver, print_facts, print_table, require_folder, say

if TYPE_CHECKING:
    from torch import Tensor

    from fourm_lite.backbone.vit import FMViT
    from fourm_lite.io.checkpoint import Checkpoint
    from fourm_lite.photos.records import Record
    from fourm_lite.pipeline.belongings import Belonging
    from fourm_lite.pipeline.description import Description
    from fourm_lite.pipeline.download import Fetched, Part

GB = 1e9
RANGE_PHOTOS = 32
"""Photos that int8 takes the ranges of its values from."""


def info(
    source: Annotated[
        str,
        typer.Argument(
            help="The checkpoint: a folder, a .safetensors file, a shipped name or a hub id."
        ),
    ],
    as_json: Json = None,
) -> None:
    """Show what a checkpoint is: its kind, configuration, modalities and licence.

    Of a 4M model it names the tokenizers and embedding networks that belong to it, with licences.

    Raises:
        CheckpointError: nothing is there, or it is damaged
        ConfigError: its configuration is wrong
    """
    from dataclasses import asdict

    from fourm_lite.io.checkpoint import read
    from fourm_lite.pipeline.description import describe, sizes

    checkpoint = read(source)
    found = describe(checkpoint)
    parts = _belongings(source, checkpoint, found)
    facts = {
        "source": str(checkpoint.source),
        "kind": found.kind,
        "format": found.format,
        "licence": checkpoint.licence or _published_licence(source),
        **sizes(checkpoint),
    }
    names = {side: [m.name for m in getattr(found, side)] for side in ("inputs", "outputs")}
    value = {**facts, **names, "belongings": list(map(asdict, parts)), "config": found.config}
    deliver(value, as_json, lambda: _show(facts, found, parts))


def _show(facts: dict[str, Any], found: Description, parts: Sequence[Belonging]) -> None:
    print_facts({**facts, "licence": facts["licence"] or "not stated"})
    print_table(("config", "value"), _plain(found.config).items())
    if found.inputs or found.outputs:
        head = ("modality", "kind", "in", "out", "tokens", "vocabulary")
        print_table(head, _modality_rows(found))
    if parts:
        _tell(parts)


def _published_licence(source: str) -> str | None:
    """The licence of a name on the hub, where its files do not state one."""
    from fourm_lite.modalities.published import FOURM

    published = FOURM.named(source)
    return None if published is None else published.licence


def _belongings(source: str, checkpoint: Checkpoint, found: Description) -> list[Belonging]:
    from fourm_lite.pipeline.belongings import belongings

    return belongings(source, checkpoint) if found.kind == "fourm" else []


def _tell(parts: Sequence[Belonging]) -> None:
    """A line for each part, whole however narrow the terminal is."""
    say("belongs to it:")
    longest = max(len(part.name) for part in parts)
    for part in parts:
        where = part.source or "a .pth file alone: fourm-lite convert"
        size = "" if part.gigabytes is None else f", {part.gigabytes:g} GB"
        licence = part.licence or "licence not stated"
        say(f"  {part.kind:9}  {part.name:{longest}}  {where}{size}, {licence}")


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what is shown elsewhere and without what is not set."""
    elsewhere = {"inputs", "outputs", "kind", "class", "format"}
    return {k: v for k, v in config.items() if k not in elsewhere and v is not None}


def _modality_rows(found: Description) -> list[tuple[Any, ...]]:
    inputs, outputs = set(found.inputs), set(found.outputs)
    every = dict.fromkeys((*found.inputs, *found.outputs))
    return [
        (m.name, m.kind, _tick(m in inputs), _tick(m in outputs), m.max_tokens, m.vocab_size or "")
        for m in every
    ]


def _tick(there: bool) -> str:
    return "yes" if there else ""


def download(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="What to fetch: hub ids of models, tokenizers or networks; '4m' is the "
            "original's text tokenizer."
        ),
    ],
    purpose: Annotated[
        str,
        typer.Option(
            "--for",
            help="Fetch what this needs: 'embed' (the model, its global embeddings' tokenizers "
            "and the text tokenizer), 'generate' (the tokenizers of all its targets) or 'all' "
            "(those of its inputs too).",
        ),
    ] = "all",
    as_json: Json = None,
) -> None:
    """Fetch what models need into the caches; afterwards HF_HUB_OFFLINE=1 will do.

    What is here already is not fetched again. The files go to the hub's cache (HF_HUB_CACHE), the
    original's text tokenizer to FOURM_LITE_CACHE.

    Raises:
        NotFetchedError: there is no network, or no such repository
    """
    from fourm_lite.pipeline.download import download as fetch

    done = {f.part.source: f for source in sources for f in fetch(source, purpose, _tell_part)}  # type: ignore[arg-type]
    rows = [
        {
            "for": f.part.role,
            "source": f.part.source,
            "bytes": f.num_bytes,
            "licence": f.licence,
            "place": str(f.place),
        }
        for f in done.values()
    ]
    total = sum(f.num_bytes for f in done.values())
    deliver({"parts": rows, "bytes": total}, as_json, lambda: _show_fetched(done.values(), total))


def _show_fetched(done: Iterable[Fetched], total: int) -> None:
    rows = [(f.part.role, f.part.source, f"{f.num_bytes / GB:.2f}") for f in done]
    print_table(("for", "source", "GB"), rows)
    for licence, names in _licences(done).items():
        say(f"licence {licence}: {', '.join(names)}")
    say(f"{total / GB:.2f} GB are here; they run with HF_HUB_OFFLINE=1")


def _licences(done: Iterable[Fetched]) -> dict[str, list[str]]:
    """What is under which licence; a narrow table has no room for it."""
    found: dict[str, list[str]] = {}
    for f in done:
        found.setdefault(f.licence or "not stated", []).append(f.part.role)
    return found


def _tell_part(part: Part) -> None:
    size = "" if part.gigabytes is None else f" (about {part.gigabytes:g} GB)"
    say(f"{part.role}: {part.source}{size}", aside=True)


def convert(
    file: Annotated[
        str,
        typer.Argument(
            help="What to convert: a .pth, .pt, .bin or .tsv file, or the folder of another "
            "toolkit.",
            callback=present,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Write the converted files into this folder.")
    ],
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            help="Read it as this: features, mmt, mobileclip, terramind, terramind_tokenizer, "
            "imagebind, dinov2 or plain; by default it is found out.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option("--part", help="Take the network under this key, if the file holds several."),
    ] = None,
    as_json: Json = None,
) -> None:
    """Turn a published file or folder into one of ours: safetensors with what belongs to it.

    Read are ImageBind's and DINOv2's files, folders of MMT-Retrieval, Oscar, UNITER and M3P,
    MobileCLIP's and TerraMind's files, and region features of detectors (.tsv, .pt, .npz).

    Raises:
        FourMError: the file needs more than tensors and plain options to be read, is damaged, or
            holds no weights or several networks
    """
    from fourm_lite.embedders.conversion import convert as convert_source

    done = convert_source(file, out, family=family, part=part)
    facts = {"folder": done.folder, "family": done.family, "tensors": done.num_tensors}
    names = ", ".join(done.left_out[:3]) + ", ..." * (len(done.left_out) > 3)
    told = f"{len(done.left_out)} tensors: {names}" if done.left_out else None
    deliver(
        facts | {"left_out": list(done.left_out), "notes": list(done.notes)},
        as_json,
        lambda: print_facts(facts | {"left out": told, "note": "; ".join(done.notes) or None}),
    )


def export(
    model: Annotated[
        str, typer.Argument(help="The classifier to export, or any model that reads pixels.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Write the exported files into this folder.")
    ],
    forms: Annotated[
        str,
        typer.Option(
            help="Make these forms, with commas between them: export, onnx, onnx-int8, compile, "
            "bf16, int8; by default all that can be made here."
        ),
    ] = "",
    photos: Annotated[
        str,
        typer.Option(
            help="Compare on these photos, a folder or list, and take int8's ranges from them; "
            "by default on noise.",
            callback=present,
        ),
    ] = "",
    images: Annotated[int, typer.Option(help="Compare on this many images.", min=1)] = 64,
    batch: Annotated[
        int, typer.Option(help="Run this many images at a time, also to measure speed.", min=1)
    ] = 8,
    threads: Annotated[
        int, typer.Option(help="Use this many CPU threads; 0 uses as many as there are.")
    ] = 0,
    as_json: Json = None,
) -> None:
    """Export a ViT, and show how each form agrees with it and how fast it is.

    A model without a trained classifier is exported without a head: it gives its pooled features.

    Raises:
        FourMError: the model reads no pixels, or a form that was named needs a missing package
    """
    require_folder(out, "--out")
    import torch

    from fourm_lite.backbone.export import report

    vit = _opened(model)
    if threads:
        torch.set_num_threads(threads)
    compared, others = _images(vit, photos, images)
    named = forms.split(",") if forms else _available()
    lines = report(vit, compared, forms=named, out=out, batch=batch, ranges_from=others)
    left_out = () if vit.num_classes else ("top1",)
    value = [{k: v for k, v in vars(a).items() if k not in left_out} for a in lines]
    deliver(value, as_json, lambda: _show_forms(lines, bool(vit.num_classes)))


def _show_forms(lines: Sequence[Any], has_classes: bool) -> None:
    agreement = "same top-1" if has_classes else "same largest feature"
    rows = [
        (a.form, f"{a.max_difference:.2g}", f"{100 * a.top1:.1f} %", f"{1000 * a.seconds:.1f}",
         f"{a.speedup:.2f}")
        for a in lines
    ]  # fmt: skip
    print_table(("form", "largest difference", agreement, "ms a batch", "speed"), rows)


def _opened(source: str) -> FMViT:
    """A classifier, or the backbone alone where no head was trained, which is said."""
    from fourm_lite.backbone.load import is_classifier
    from fourm_lite.backbone.vit import FMViT
    from fourm_lite.io.checkpoint import read

    checkpoint = read(source)
    trained = is_classifier(checkpoint)
    vit = FMViT.from_pretrained(checkpoint, num_classes=None if trained else 0)
    if not vit.num_classes:
        say(
            f"{source} has no trained classifier: its features are exported; for classes see "
            "`fourm-lite finetune`",
            aside=True,
        )
    return vit


def _available() -> list[str]:
    """The forms whose packages are here; of the others it is said what they lack."""
    from fourm_lite.backbone.export import FORMS, missing_packages

    lacking = {form: missing for form in FORMS if (missing := missing_packages(form))}
    for form, missing in lacking.items():
        needs = f"{form} needs {' and '.join(missing)}; pip install {' '.join(missing)}"
        say(f"left out: {needs}", aside=True)
    return [form for form in FORMS if form not in lacking]


def _images(vit: FMViT, photos: str, count: int) -> tuple[Tensor, Tensor | None]:
    """What is compared, and other photos (spread over all) that int8 takes its ranges from."""
    import torch

    from fourm_lite.finetune.pixels import read_pixels
    from fourm_lite.photos.labelled import Photo
    from fourm_lite.photos.records import read_records

    if not photos:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *vit.input_size, generator=generator), None
    found = read_records(photos)
    rest = found[count:] or found
    others = rest[:: max(1, len(rest) // RANGE_PHOTOS)][:RANGE_PHOTOS]
    size = vit.input_size[1:]
    images, ranges = (
        torch.stack([read_pixels(Photo(r, ()), size) for r in _readable(part)])
        for part in (found[:count], others)
    )
    return images, ranges


def _readable(records: Sequence[Record]) -> list[Record]:
    """The photos that can be read; of the others it is told, aside."""
    from fourm_lite.data.unread import readable

    good, left_out = readable(records)
    for one in left_out:
        say(f"left out: {one.uri}: {one.reason}", aside=True)
    return good


def demo(
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos",
            help="Show it on this folder of pictures; by default on examples.",
            callback=present,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Write the page into this folder.")
    ] = Path("demo"),
    as_json: Json = None,
) -> None:
    """Embed, index, search and generate on a folder of pictures, and show it on one page.

    The last line that is printed is the page's path.

    Raises:
        FourMError: the folder holds no picture that can be read
    """
    require_folder(out, "--out")
    from fourm_lite.demo.run import run_demo

    page = run_demo(photos, out, say=lambda text: say(text, aside=True)).absolute()
    deliver({"page": page}, as_json, lambda: say(page))
