"""The blocks of docs/embedders.md run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "embedders.md"


def test_the_blocks_of_the_document_run():
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}

    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)

    assert len(blocks) >= 2
    assert names["result"].top(1)[0][0][0] in ("cat", "dog")
