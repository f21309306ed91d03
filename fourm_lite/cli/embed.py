"""`fourm-lite embed`: photos, texts or items become vectors in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourm_lite.cli.options import (
    AnyModel,
    BatchSize,
    Center,
    Decode,
    Device,
    Dtype,
    Gallery,
    Json,
    Target,
    TextTokenizer,
    Tokenizers,
    Workers,
    dtype_of,
    present,
)
from fourm_lite.cli.output import deliver, left_out_facts, print_facts, progress, say_left_out


def embed(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="What is embedded, all of one kind: photos (as for an index), texts (.txt, one on "
            "each line), or items (.jsonl of modality and value).",
            callback=present,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Write the vectors to this .npy (ids go to NAME.ids.jsonl), .parquet or .lance.",
        ),
    ],
    model: AnyModel = "mini",
    gallery: Gallery = "model",
    target: Target = None,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    decode: Decode = "expected",
    center: Center = True,
    workers: Workers = 2,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Put this text before every id.")] = "",
    as_json: Json = None,
) -> None:
    """Embed photos, texts or items: unit vectors with ids, in the order of what was given.

    A run that was stopped goes on when it is started again. What cannot be read is listed with the
    reason.

    Raises:
        FourMError: the model or a source cannot be opened, or there is nothing to embed
    """  # fmt: skip
    from fourm_lite.search.embed_files import check_form, embed_to_file
    from fourm_lite.search.gallery import Ingest
    from fourm_lite.search.spaces import open_space

    check_form(out)
    space = open_space(
        model, target=target, gallery=gallery, decode=decode, center=center,  # type: ignore[arg-type]
        tokenizers=tokenizers, text_tokenizer=text_tokenizer, device=device, dtype=dtype_of(dtype),
    )  # fmt: skip
    how = Ingest(workers, batch_size, prefix=prefix)
    with progress("embedding") as told:
        done = embed_to_file(
            inputs, out, space, how,
            progress=lambda report, total: told.tell(
                "embedding", report.seen, total, f"{report.rate:.1f} a second"
            ),
        )  # fmt: skip
    facts = {"file": out, "rows": done.rows, "width": done.width, "space": space.name}

    def show() -> None:
        print_facts({**facts, "left out": len(done.left_out) or None})
        say_left_out(done.left_out)

    deliver({**facts, "left_out": left_out_facts(done.left_out)}, as_json, show)
