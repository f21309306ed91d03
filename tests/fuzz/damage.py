"""Damage done to sound files: to their bytes, or to the values that their text says.

Each function takes a `random.Random`, so that hypothesis can draw it and a campaign can count it.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, -1e-320,
    float("nan"), float("inf"), "", " ", "a", "0", "-1", "1e9", "nan", "..", "../x", "/etc/passwd",
    "C:\\x", "a\0b", "\x1b[2J", "\u202e", "\ud800", "é" * 300, "x" * 5000, "%s%n", "{}", "[]",
    "true", "float32", "rgb@224", "caption", "tokenizers/rgb", "a/b", "s3://a/b", "~",
    [], {}, [None], [[]], [1, "a"], ["a", "a"], [10**12], [-1, -1], {"a": 1}, {"": None},
    [[1, 2], [3]], [0] * 300, {str(i): i for i in range(300)},
)  # fmt: skip


def damaged_bytes(draw: random.Random, data: bytes) -> bytes:
    """Some bytes changed, cut out, doubled or put in; or the file cut short."""
    raw = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not raw:
            return bytes(raw)
        at = draw.randrange(len(raw))
        length = min(draw.choice((1, 1, 1, 2, 4, 16, 64)), len(raw) - at)
        kind = draw.randrange(7)
        if kind == 0:
            raw[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            raw[at : at + length] = draw.randbytes(length)
        elif kind == 2:
            raw[at : at + length] = draw.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * length
        elif kind == 3:
            del raw[at : at + length]
        elif kind == 4:
            raw[at:at] = raw[at : at + length]
        elif kind == 5:
            raw[at:at] = draw.randbytes(length)
        else:
            del raw[at:]
    return bytes(raw)


def damaged_value(draw: random.Random, value: Any) -> Any:
    """A JSON value with some of its parts replaced, renamed, taken out or doubled."""
    whole = [copy.deepcopy(value)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(whole))
        parent, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind < 5 or parent is whole:
            parent[key] = copy.deepcopy(draw.choice(STRANGE))
        elif kind == 5:
            del parent[key]
        elif isinstance(parent, dict):
            name = draw.choice(STRANGE)
            parent[name if isinstance(name, str) else "extra"] = parent.pop(key)
        else:
            parent.insert(key, copy.deepcopy(parent[draw.randrange(len(parent))]))
    return whole[0]


def damaged_json(draw: random.Random, value: Any) -> bytes:
    """JSON of a damaged value, or damaged bytes of its JSON."""
    if draw.randrange(5) == 0:
        return damaged_bytes(draw, json.dumps(value).encode())
    if draw.randrange(40) == 0:
        return draw.choice((b"[", b'{"a":')) * draw.choice((100, 2_000, 50_000))
    return json.dumps(damaged_value(draw, value)).encode()


def damaged_lines(draw: random.Random, rows: list[Any]) -> bytes:
    """JSON lines of which some are damaged."""
    lines = [json.dumps(row).encode() for row in rows]
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(lines))
        lines[at] = damaged_json(draw, rows[at])
    text = b"\n".join(lines) + b"\n"
    return damaged_bytes(draw, text) if draw.randrange(8) == 0 else text


def damaged_toml(draw: random.Random, value: dict[str, Any]) -> bytes:
    """TOML of a damaged value, or damaged bytes of its TOML."""
    if draw.randrange(5) == 0:
        return damaged_bytes(draw, toml(value).encode())
    found = damaged_value(draw, value)
    text = toml(found) if isinstance(found, dict) else f"value = {_toml_value(found)}\n"
    return text.encode("utf-8", "surrogatepass")


def toml(value: dict[str, Any]) -> str:
    """A value as TOML: tables inline, nothing where TOML has no word."""
    rows = (f"{_key(k)} = {_toml_value(v)}\n" for k, v in value.items() if v is not None)
    return "".join(rows)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        inner = (f"{_key(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value if v is not None) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def _key(name: str) -> str:
    return json.dumps(name)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a value."""
    found, waiting = [], [value]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found
