"""The worked examples of docs/architecture.md, as the tests run them."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/architecture.md"


def example(name, **names):
    """A function that a block of the page defines, run with the given names around it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    block = next(block for block in blocks if f"def {name}(" in block)
    exec(compile("from __future__ import annotations\n" + block, str(PAGE), "exec"), names)
    return names[name]
