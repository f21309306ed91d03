"""`fourm-lite serve`: a search service and a page to search in, over one index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import dtype_of, present, tell_precision
from fourm_lite.cli.output import say
from fourm_lite.errors import ConfigError
from fourm_lite.reading.regular import read_text

TOKEN = "FOURM_LITE_TOKEN"


def serve(
    index: opt.IndexPath,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help=f"Answer only requests with the token in this file (or in the variable {TOKEN}).",
            callback=present,
        ),
    ] = None,
    allow_host: opt.Texts = None,
    model: opt.IndexModel = None,
    target: opt.Target = None,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    max_body: Annotated[int, typer.Option(min=1)] = 16,
    max_k: Annotated[int, typer.Option(min=1)] = 1000,
    max_waiting: Annotated[int, typer.Option(min=1)] = 64,
    seconds: Annotated[float, typer.Option(min=0.1)] = 30.0,
) -> None:
    """Serve an index over HTTP, with a page to search in.

    Only this machine can connect unless --host says otherwise. The page is at /, the description of
    the API at /docs. Photos that are indexed meanwhile are found at once. Ctrl+C stops it.

    Args:
        host: Listen at this address; with 0.0.0.0 other machines can connect.
        port: Listen at this port; 0 chooses a free one.
        allow_host: Answer to this name of the server, too. May be repeated.
        max_body: Refuse requests of more MiB than this.
        max_k: Refuse requests for more hits than this.
        max_waiting: Hold this many requests at once; others get an error that says to try again.
        seconds: Give up on an answer after this many seconds.

    Raises:
        FourMError: the index cannot be opened, or the address cannot be had
    """
    from fourm_lite.search.engine import Search
    from fourm_lite.serve.fields import Limits
    from fourm_lite.serve.server import is_loopback
    from fourm_lite.serve.server import serve as run

    token = _token(token_file)
    if token is None and not is_loopback(host):
        say(
            f"anyone who can reach {host} can search here and see the photos; --token-file asks "
            "for a token",
            aside=True,
        )
    options = {
        "target": target, "tokenizers": tokenizers, "text_tokenizer": text_tokenizer,
        "device": device, "dtype": dtype_of(dtype),
    }  # fmt: skip
    tell_precision(dtype, model, device)
    limits = Limits(body=max_body << 20, k=max_k, waiting=max_waiting, seconds=seconds)
    run(
        lambda: Search.open(index, model, **options), host=host, port=port, token=token,
        hosts=tuple(allow_host or ()), limits=limits, ready=lambda url: say(url, aside=True),
    )  # fmt: skip


def serve_demo(out: Path, port: int, dtype: str | None) -> None:
    """Serves the page over what a demo indexed.

    Raises:
        ConfigError: the address cannot be had
    """
    from fourm_lite.demo.run import INDEX, demo_model
    from fourm_lite.search.engine import Search
    from fourm_lite.serve.server import serve as run

    run(
        lambda: Search.open(out / INDEX, demo_model(out), dtype=dtype),
        port=port,
        ready=lambda url: say(url, aside=True),
    )


def _token(file: Path | None) -> str | None:
    """The token of a file or of the environment; None where none is asked for."""
    text = os.environ.get(TOKEN) if file is None else read_text(file, most=4096)
    if text is None:
        return None
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"a token should be one line of letters and digits, that of {file or TOKEN} is not"
        )
    return token
