"""`fourm-lite add-embedding`: any embedding network becomes a modality of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fourm_lite.cli.options import FourM, Json, Seed, TextTokenizer, Tokenizers, present
from fourm_lite.cli.output import deliver, print_facts, progress, require_folder, say


def add_embedding(
    name: Annotated[
        str, typer.Argument(help="The name that the new modality gets, such as my_network.")
    ],
    embedder: Annotated[
        str,
        typer.Option(
            "--embedder", "-e",
            help="Learn to predict this network's vectors: onnx:FILE, timm:NAME, hf:FOLDER_OR_ID.",
        ),
    ],
    photos: Annotated[
        list[Path],
        typer.Option(
            "--photos", "-p",
            help="Learn from these photos: a folder (with captions.jsonl or without), a .tar, "
            ".parquet or .jsonl. May be repeated.",
            callback=present,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Write the widened model into this new folder.")
    ],
    model: FourM = "mini",
    train: Annotated[
        str,
        typer.Option(
            "--train", help="Train 'tables' alone (old weights stay as they are) or 'all' weights."
        ),
    ] = "tables",
    steps: Annotated[
        int, typer.Option("--steps", help="Fine-tune the model for this many steps.", min=1)
    ] = 300,
    lr: Annotated[
        float, typer.Option("--lr", help="Train the new tables with this learning rate.")
    ] = 2e-3,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", help="Write a vector as this many codes; by default 16.", min=1),
    ] = None,
    codebook_size: Annotated[
        int | None,
        typer.Option(
            "--codebook-size",
            help="Let codes have this many values; by default it follows the number of photos.",
            min=2,
        ),
    ] = None,
    tokenizer_steps: Annotated[
        int | None,
        typer.Option(
            "--tokenizer-steps",
            help="Train the tokenizer for this many steps; by default it follows the number of "
            "photos.",
            min=1,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Learn from this split of captions.jsonl; by default from train."
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out", help="Measure on these photos: a share such as 0.1, or a split's name."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Train on this many samples a step.", min=1)
    ] = 48,
    seed: Seed = 0,
    title: Annotated[
        str, typer.Option("--title", help="Call the modality by this name on its card.")
    ] = "",
    licence: Annotated[
        str, typer.Option("--licence", help="Write on the card that the result is under this.")
    ] = "",
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    as_json: Json = None,
) -> None:  # fmt: skip
    """Make a modality of an embedding network: tokenizer, grown model, figures, card.

    Call it again to go on after a stop; what is done is skipped. The model that is grown is not
    changed.

    Raises:
        FourMError: a wrong name, too few photos, a network that gives no usable vectors
    """
    require_folder(out, "--out")
    from fourm_lite.add_embedding.register import register_embedding
    from fourm_lite.pipeline.tokenizers import with_text

    with progress("photos", stages=True) as told:
        added = register_embedding(
            name, embedder, photos, out=out, model=model,
            tokenizers=with_text(tokenizers, text_tokenizer), progress=told.tell,
            train=train, steps=steps, lr=lr, tokens=tokens, codebook_size=codebook_size,
            tokenizer_steps=tokenizer_steps, split=split, held_out=_share(held_out),
            batch_size=batch_size, seed=seed, title=title, licence=licence,
        )  # fmt: skip
    value = {"folder": added.folder, "skipped_stages": added.skipped, **added.report}
    deliver(value, as_json, lambda: _show(added))


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
