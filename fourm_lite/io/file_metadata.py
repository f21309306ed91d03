"""The strings in a safetensors header: our own configuration, 4M's, or names of shared tensors.

4M writes each configuration value as `str(value)`. The strings are read as Python literals, then
as JSON; nothing is evaluated. Two readings differ from 4M's YAML on purpose: `1e-05` is a number
here (a string there), and `yes`, `no`, `on`, `off` stay the words that they are.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from fourm_lite.io.strict_json import as_object, parse_json

MAX_LITERAL = 10_000  # longer values stay strings, as in 4M
MAX_NESTING = 16
OWN_KEY = "config"
_WORDS: dict[str, Any] = {
    "None": None, "null": None, "~": None,
    "True": True, "true": True, "TRUE": True,
    "False": False, "false": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})\Z")
_FLOAT = re.compile(
    r"[+-]?([0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40}|[0-9]{1,40}(?=[eE]))([eE][+-]?[0-9]{1,4})?\Z"
)
# What str() of lists, tuples, dicts, texts and numbers is made of: no operator, name or call
_TOKENS = re.compile(
    r"""(?:[\[\](){},:\s]|'[^'\\\n]*+'|"[^"\\\n]*+"|-?[0-9][0-9.]*+(?:e[+-]?[0-9]++)?"""
    r"""|None|True|False)*+\Z"""
)
_PLAIN = (str, int, float, bool, type(None))


def read_metadata(
    metadata: Mapping[str, str], tensors: Collection[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """What the metadata tells: aliases (dropped name -> kept name), and the configuration.

    Raises:
        CheckpointError: our own configuration is damaged
    """
    aliases = {
        key: value for key, value in metadata.items() if value in tensors and key not in tensors
    }
    rest = {key: value for key, value in metadata.items() if key not in aliases and key != "format"}
    if rest.get(OWN_KEY, "").lstrip().startswith("{"):
        what = f"the metadata key '{OWN_KEY}'"
        return aliases, as_object(parse_json(rest[OWN_KEY], what), what)
    return aliases, {key: parse_value(value) for key, value in rest.items()}


def parse_value(text: str) -> Any:
    """The value behind `str(value)`; the text itself when it is no plain literal.

    >>> parse_value("['caption', 'rgb@224']"), parse_value("1e-05"), parse_value("GELU")
    (['caption', 'rgb@224'], 1e-05, 'GELU')
    """
    stripped = text.strip()
    if len(text) > MAX_LITERAL:
        return text
    if stripped in _WORDS:
        return _WORDS[stripped]
    if _INTEGER.match(stripped):
        return int(stripped)
    if _FLOAT.match(stripped):
        number = float(stripped)
        return number if math.isfinite(number) else text
    if stripped[:1] in ("[", "(", "{", "'", '"'):
        return _parse_literal(stripped, text)
    return text


def _parse_literal(stripped: str, text: str) -> Any:
    for parse in (_python_literal, _json_literal):
        try:
            value = parse(stripped)
            if _is_plain(value, MAX_NESTING):
                return value
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, OSError):
            continue
    return text


def _python_literal(text: str) -> Any:
    if not _TOKENS.match(text):
        raise ValueError("no plain literal")
    return ast.literal_eval(text)


def _json_literal(text: str) -> Any:
    return parse_json(text, "a metadata value")


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value is made of lists, tuples, string-keyed dicts and finite scalars alone."""
    if depth == 0:
        return False
    if isinstance(value, list | tuple):
        return all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v, depth - 1) for k, v in value.items())
    return isinstance(value, _PLAIN) and not (isinstance(value, float) and not math.isfinite(value))
