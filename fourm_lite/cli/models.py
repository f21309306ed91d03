"""`fourm-lite info`, `download`, `push`, `convert`, `demo`: models seen, fetched and changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli.options import Dtype, Json, Texts, dtype_of, present, tell_precision
from fourm_lite.cli.output import deliver, print_facts, print_table, progress, require_folder, say

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint
    from fourm_lite.pipeline.belongings import Belonging, Description, Fetched, Part

GB = 1e9


def info(
    source: str,
    as_json: Json = None,
) -> None:
    """Show what a checkpoint is: its kind, configuration, modalities and licence.

    Of a 4M model it names the tokenizers and embedding networks that belong to it, with licences.

    Args:
        source: The checkpoint: a folder, a .safetensors file, a shipped name or a hub id.

    Raises:
        CheckpointError: nothing is there, or it is damaged
        ConfigError: its configuration is wrong
    """
    from dataclasses import asdict

    from fourm_lite.io.checkpoint import read
    from fourm_lite.pipeline.belongings import describe, sizes

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
    if found.inputs or found.outputs:
        head = ("modality", "kind", "in", "out", "tokens", "vocabulary")
        print_table(head, _modality_rows(found))
    if parts:
        _tell(parts)
    print_table(("config", "value"), _plain(found.config).items())


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
        where = part.source or "only as a .pth file: fourm-lite convert"
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
    sources: list[str],
    purpose: Annotated[str, typer.Option("--for")] = "all",
    as_json: Json = None,
) -> None:
    """Fetch what models need into the caches; afterwards HF_HUB_OFFLINE=1 will do.

    What is here already is not fetched again. The files go to the hub's cache (HF_HUB_CACHE), the
    original's text tokenizer to FOURM_LITE_CACHE.

    Args:
        sources: What to fetch: hub ids of models, tokenizers or networks; '4m' is the original's
            text tokenizer.
        purpose: Fetch what this needs: 'embed' (the model, its global embeddings' tokenizers and
            the text tokenizer), 'generate' (the tokenizers of all its targets) or 'all' (those of
            its inputs too).

    Raises:
        NotFetchedError: there is no network, or no such repository
    """
    from fourm_lite.pipeline.belongings import download as fetch

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


def push(
    source: str,
    repo: str,
    licence: str | None = None,
    datasets: Annotated[Texts, typer.Option("--dataset")] = None,
    base_model: str | None = None,
    private: Annotated[bool, typer.Option("--private")] = False,
    revision: str | None = None,
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
    as_json: Json = None,
) -> None:
    """Push a model, a tokenizer or a classifier to the Hugging Face Hub, with its card.

    The card is README.md with the YAML head that the hub reads; the text of a README.md or card.md
    in the folder is kept. Log in first with `hf auth login`, or set HF_TOKEN.

    Args:
        source: What to push: the folder of a model, a tokenizer or a classifier, or its
            .safetensors file.
        repo: The repository on the hub that takes it: owner/name.
        licence: State this licence on the card, such as apache-2.0; by default the one that the
            files state.
        datasets: Name this dataset on the card: it was trained on. May be repeated.
        base_model: Name this model on the card: it was made from it.
        private: Make a new repository private.
        revision: Commit to this branch, not to the main one.
        dry_run: Show the card and the files, and push nothing.

    Raises:
        FourMError: nothing that can be loaded is there, or the hub refuses
    """
    from fourm_lite.io import push as hub
    from fourm_lite.io.hub import resolve

    hub.check_repo_id(repo)
    place = resolve(source)
    about = hub.CardFacts(licence=licence, datasets=tuple(datasets or ()), base_model=base_model)
    card = hub.model_card(place, repo, about)
    files = [path.name for path in hub.pushed_files(place)]
    address = None
    if not dry_run:
        address = hub.push(place, repo, facts=about, private=private or None, revision=revision)
    facts = {"repository": address or repo, "files": [hub.README, *files]}

    def show() -> None:
        print_facts({**facts, "files": ", ".join(facts["files"])})
        if dry_run:
            say(card, keep="\n")

    deliver({**facts, "pushed": not dry_run, "card": card}, as_json, show)


def convert(
    file: Annotated[str, typer.Argument(callback=present)],
    out: Annotated[Path, typer.Option("--out", "-o")],
    family: str | None = None,
    part: str | None = None,
    half: Annotated[bool, typer.Option("--half")] = False,
    as_json: Json = None,
) -> None:
    """Turn a published file or folder into one of ours: safetensors with what belongs to it.

    Read are ImageBind's, DINOv2's and EfficientNet-Lite's files, folders of MMT-Retrieval, Oscar,
    UNITER and M3P, MobileCLIP's and TerraMind's files, and region features (.tsv, .pt, .npz).

    Args:
        file: What to convert: a .pth, .pt, .bin or .tsv file, or the folder of another toolkit.
        out: Write the converted files into this folder.
        family: Read it as this: features, mmt, mobileclip, terramind, terramind_tokenizer,
            imagebind, dinov2, efficientnet_lite or plain; by default it is found out.
        part: Take the network under this key, if the file holds several.
        half: Store floats as float16.

    Raises:
        FourMError: the file needs more than tensors and plain options to be read, is damaged, or
            holds no weights or several networks
    """
    from fourm_lite.embedders.conversion import convert as convert_source

    with progress("items") as told:
        done = convert_source(
            file, out, family=family, part=part, half=half, progress=told.of("items")
        )
    facts = {"folder": done.folder, "family": done.family, "tensors": done.num_tensors}
    names = ", ".join(done.left_out[:3]) + ", ..." * (len(done.left_out) > 3)
    left = f"{len(done.left_out)} tensors: {names}" if done.left_out else None
    deliver(
        facts | {"left_out": list(done.left_out), "notes": list(done.notes)},
        as_json,
        lambda: print_facts(facts | {"left out": left, "note": "; ".join(done.notes) or None}),
    )


def demo(
    photos: Annotated[Path | None, typer.Option(callback=present)] = None,
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("demo"),
    serve: Annotated[bool, typer.Option("--serve")] = False,
    port: Annotated[int, typer.Option(max=65535)] = 8000,
    dtype: Dtype = None,
    as_json: Json = None,
) -> None:
    """Embed, index, search and generate on a folder of pictures, and show it on one page.

    The last line that is printed is the page's path; with --serve the process goes on and serves.

    Args:
        photos: Show it on this folder of pictures; by default on examples.
        out: Write the page into this folder.
        serve: Then serve a page to search in, over the same photos.
        port: Serve at this port; 0 takes one that is free.

    Raises:
        FourMError: the folder holds no picture that can be read
    """
    require_folder(out, "--out")
    if serve:
        from fourm_lite.serve.server import require_packages

        require_packages()
    from fourm_lite.demo.run import demo_model, run_demo

    held_as = dtype_of(dtype)
    page = run_demo(photos, out, dtype=held_as, say=lambda text: say(text, aside=True)).absolute()
    tell_precision(held_as, demo_model(out))
    deliver({"page": page}, as_json, lambda: say(page))
    if serve:
        from fourm_lite.cli.serve import serve_demo

        serve_demo(out, port, held_as)
