"""`fourm-lite add-embedding`: any embedding network becomes a modality of a model."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import print_facts, print_json, say
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import Json, TextTokenizer, Tokenizers
from fourm_lite.cli.words import Argument, Option

EVERY = 15.0  # seconds between lines where nobody sees a bar


def add_embedding(
    name: Annotated[str, Argument("Name of the new modality, such as my_network.")],
    embedder: Annotated[
        str, Option("--embedder", "-e", help="onnx:FILE, timm:NAME, hf:FOLDER_OR_ID, ...")
    ],
    photos: Annotated[
        list[Path],
        Option(
            "--photos",
            "-p",
            help="Folder (with captions.jsonl or without), .tar, .parquet, .jsonl. Repeatable.",
        ),
    ],
    out: Annotated[Path, Option("--out", "-o", help="A new folder for the grown model.")],
    model: Annotated[str, Option("--model", "-m", help="4M model to grow.")] = "mini",
    train: Annotated[
        str, Option("--train", help="tables: old weights stay as they are; all: everything.")
    ] = "tables",
    steps: Annotated[int, Option("--steps", help="Of the fine-tuning.", min=1)] = 300,
    lr: Annotated[float, Option("--lr", help="Learning rate of the new tables.")] = 2e-3,
    tokens: Annotated[
        int | None, Option("--tokens", help="Codes of a vector; 16 by default.", min=1)
    ] = None,
    codebook_size: Annotated[
        int | None, Option("--codebook-size", help="By default by the number of photos.", min=2)
    ] = None,
    tokenizer_steps: Annotated[
        int | None, Option("--tokenizer-steps", help="By default by the number of photos.", min=1)
    ] = None,
    split: Annotated[
        str | None, Option("--split", help="Lines of captions.jsonl to learn; train by default.")
    ] = None,
    held_out: Annotated[
        str | None, Option("--held-out", help="A share (0.1) or a split, to measure on.")
    ] = None,
    batch_size: Annotated[int, Option("--batch-size", help="Samples a step.", min=1)] = 48,
    seed: Annotated[int, Option("--seed", help="Of everything random.")] = 0,
    title: Annotated[str, Option("--title", help="What people call the modality.")] = "",
    licence: Annotated[str, Option("--licence", help="Of the result, for its card.")] = "",
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    as_json: Json = False,
) -> None:
    """Make a modality of an embedding network: tokenizer, grown model, figures, card.

    Call it again to go on after a stop; what is done is skipped. The model that is grown is not
    changed.

    Raises:
        FourMError: a wrong name, too few photos, a network that gives no usable vectors
    """
    from fourm_lite.add_embedding.register import register_embedding
    from fourm_lite.pipeline.tokenizers import with_text

    with _progress() as told:
        added = register_embedding(
            name, embedder, photos, out=out, model=model,
            tokenizers=with_text(tokenizers, text_tokenizer), progress=told,
            train=train, steps=steps, lr=lr, tokens=tokens, codebook_size=codebook_size,
            tokenizer_steps=tokenizer_steps, split=split, held_out=_share(held_out),
            batch_size=batch_size, seed=seed, title=title, licence=licence,
        )  # fmt: skip
    if as_json:
        print_json({"folder": added.folder, "skipped_stages": added.skipped, **added.report})
        return
    _show(added)


def _share(text: str | None) -> str | float | None:
    """A share where it is a number, else the name of a split."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _show(added: Any) -> None:
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


class _Lines:
    """A line on stderr for each new kind of work, and one every few seconds after it."""

    def __init__(self) -> None:
        self._what, self._when = "", 0.0

    def tell(self, what: str, done: int, total: int) -> None:
        """So much of something is done."""
        now = time.monotonic()
        if what == self._what and now - self._when < EVERY and done != total:
            return
        self._what, self._when = what, now
        count = f" {done} of {total}" if total else (f" {done}" if done else "")
        say(f"{what}{count}", aside=True)


def _progress() -> Any:
    from contextlib import contextmanager

    @contextmanager
    def telling() -> Any:
        if not sys.stderr.isatty():
            yield _Lines().tell
            return
        with count_progress("starting") as counts:
            yield counts.tell

    return telling()
