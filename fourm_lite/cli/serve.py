"""`fourm-lite serve`: a search service and a page to search in, over one index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from fourm_lite.cli.output import say
from fourm_lite.cli.search_options import (
    Device,
    IndexModel,
    IndexPath,
    Target,
    Texts,
    TextTokenizer,
    Tokenizers,
)
from fourm_lite.cli.words import Option
from fourm_lite.errors import ConfigError
from fourm_lite.reading.regular import read_text

TOKEN = "FOURM_LITE_TOKEN"


def serve(
    index: IndexPath,
    host: Annotated[
        str, Option("--host", help="Address to listen at; others reach only 0.0.0.0 or their own.")
    ] = "127.0.0.1",
    port: Annotated[int, Option("--port", help="0: any that is free.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        Option("--token-file", help=f"File with the token that requests must bear (or {TOKEN})."),
    ] = None,
    allow_host: Annotated[
        Texts, Option("--allow-host", help="A name by which the server is called. Repeatable.")
    ] = None,
    model: IndexModel = None,
    target: Target = None,
    tokenizers: Tokenizers = None,
    text_tokenizer: TextTokenizer = None,
    device: Device = None,
    max_body: Annotated[int, Option("--max-body", help="MiB of a request.", min=1)] = 16,
    max_k: Annotated[int, Option("--max-k", help="Hits of a request.", min=1)] = 1000,
    max_waiting: Annotated[
        int, Option("--max-waiting", help="Requests at once; more are told to come again.", min=1)
    ] = 64,
    seconds: Annotated[float, Option("--seconds", help="For an answer.", min=0.1)] = 30.0,
) -> None:
    """Serve an index over HTTP, with a page to search in.

    Only this machine is answered unless --host says otherwise. The page is at /, the description of
    the API at /docs. Rows that are indexed meanwhile are found at once.

    Raises:
        FourMError: the index cannot be opened, or the address cannot be had
    """
    from fourm_lite.search.engine import Search
    from fourm_lite.serve.limits import Limits
    from fourm_lite.serve.run import is_loopback
    from fourm_lite.serve.run import serve as run

    token = _token(token_file)
    if token is None and not is_loopback(host):
        say(
            f"anyone who reaches {host} can search here and see the photos; --token-file asks for "
            "a token",
            aside=True,
        )
    options = {
        "target": target, "tokenizers": tokenizers, "text_tokenizer": text_tokenizer,
        "device": device,
    }  # fmt: skip
    limits = Limits(body=max_body << 20, k=max_k, waiting=max_waiting, seconds=seconds)
    run(
        lambda: Search.open(index, model, **options), host=host, port=port, token=token,
        hosts=tuple(allow_host or ()), limits=limits, ready=lambda url: say(url, aside=True),
    )  # fmt: skip


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
