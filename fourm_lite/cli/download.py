"""`fourm-lite download`: what a model needs, fetched once; afterwards no network is needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from fourm_lite.cli.output import print_json, print_table, say
from fourm_lite.cli.words import Argument, Option

if TYPE_CHECKING:
    from fourm_lite.pipeline.download import Fetched, Part

GB = 1e9


def download(
    sources: Annotated[
        list[str],
        Argument("Hub ids of models, tokenizers or networks; 4m: the original's text tokenizer."),
    ],
    purpose: Annotated[
        str,
        Option(
            "--for",
            help="embed: the model, its global embeddings' tokenizers and the text tokenizer; "
            "generate: the tokenizers of all its targets; all: those of its inputs too.",
        ),
    ] = "all",
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Fetch what models need into the caches; afterwards HF_HUB_OFFLINE=1 will do.

    What is here already is not fetched again. The files go to the hub's cache (HF_HUB_CACHE), the
    original's text tokenizer to FOURM_LITE_CACHE.

    Raises:
        NotFetchedError: there is no network, or no such repository
    """
    from fourm_lite.pipeline.download import download as fetch

    done = {f.part.source: f for source in sources for f in fetch(source, purpose, _tell)}  # type: ignore[arg-type]
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
    if as_json:
        print_json({"parts": rows, "bytes": total})
        return
    print_table(
        ("for", "source", "GB"),
        [(f.part.role, f.part.source, f"{f.num_bytes / GB:.2f}") for f in done.values()],
    )  # fmt: skip
    for licence, names in _licences(done.values()).items():
        say(f"licence {licence}: {', '.join(names)}")
    say(f"{total / GB:.2f} GB are here; they run with HF_HUB_OFFLINE=1")


def _licences(done: Iterable[Fetched]) -> dict[str, list[str]]:
    """What is under which licence; a narrow table has no room for it."""
    found: dict[str, list[str]] = {}
    for f in done:
        found.setdefault(f.licence or "not stated", []).append(f.part.role)
    return found


def _tell(part: Part) -> None:
    size = "" if part.gigabytes is None else f" (about {part.gigabytes:g} GB)"
    say(f"{part.role}: {part.source}{size}", aside=True)
