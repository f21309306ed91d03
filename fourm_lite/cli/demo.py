"""`fourm-lite demo`: everything at once, on a page; the last line printed is its path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fourm_lite.cli.output import say
from fourm_lite.cli.words import Option
from fourm_lite.demo.run import run_demo


def demo(
    photos: Annotated[
        Path | None, Option("--photos", help="Your folder of pictures; else examples are used.")
    ] = None,
    out: Annotated[Path, Option("--out", "-o", help="Folder for the page.")] = Path("demo"),
) -> None:
    """Embed, index, search and generate on a folder of pictures, and show it on one page.

    Raises:
        FourMError: the folder holds no picture that can be read
    """
    page = run_demo(photos, out, say=lambda text: say(text, aside=True))
    say(page.absolute())
