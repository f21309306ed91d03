"""From the checked fields of a request to a question that `Search` answers, and to items to embed.

The names of a request are a person's (text, image, like), those of a query the model's (caption,
rgb, row). No text of a request becomes the name of a file: where a model reads pictures, a text is
base64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fourm_lite.errors import ConfigError
from fourm_lite.pipeline.readers import find_modality
from fourm_lite.search.engine import Ask, Search
from fourm_lite.search.query import ROW, Query
from fourm_lite.search.space import PICTURE, TEXT, Space
from fourm_lite.serve.fields import Field as _Field
from fourm_lite.serve.fields import Fields, Limits, picture, required, short_enough

NAMES = {"text": TEXT, "image": PICTURE, "like": ROW}
"""A request's name of a field and the query's name of a term."""
_PICTURE = _Field("pictures", "")


def search_question(fields: Fields, search: Search, limits: Limits) -> Ask:
    """The question of a `POST /search`.

    Raises:
        FourMError: nothing is asked for, a row is not there, or a value is not of its modality
    """
    required(fields, *NAMES, "given", *(f"not_{name}" for name in NAMES))
    wanted: dict[str, Any] = _wishes(fields, "", search)
    for name, value in model_values(fields.get("given", {}), search.space, limits).items():
        wanted.setdefault(name, []).append(value)
    query = Query.of(
        wanted,
        without=_wishes(fields, "not_", search),
        weights={_weight_name(n): w for n, w in fields.get("weights", {}).items()},
        compose=fields.get("compose"),
    )
    k = 10 if fields.get("k") is None else fields["k"]
    return Ask(query, k, fields.get("where"), fields.get("rerank", 0))


def _wishes(fields: Fields, sign: str, search: Search) -> dict[str, list[Any]]:
    found = {n: list(fields[sign + own]) for own, n in NAMES.items() if sign + own in fields}
    if ROW in found:
        found[ROW] = list(search.index.vectors([known_id(i, search) for i in found[ROW]]))
    return found


def known_id(name: str | int, search: Search) -> str | int:
    """An id as the index spells it: ids of JSON and of addresses may be texts of numbers."""
    if isinstance(name, str) and not _ids_are_texts(search):
        try:
            return int(name)
        except ValueError:
            raise ConfigError(
                f"the ids of this index are whole numbers, got {name[:80]!r}"
            ) from None
    return str(name) if _ids_are_texts(search) else name


def _ids_are_texts(search: Search) -> bool:
    with contextlib.closing(search.index.scan(["id"])) as batches:  # type: ignore[type-var]
        first = next(batches, None)
    return first is None or "string" in str(first.schema.field("id").type)


def _weight_name(name: str) -> str:
    """The query's name of what is weighed: "not_text" is "not-caption"."""
    negative = name.startswith(("not_", "not-"))
    plain = name[4:] if negative else name
    return ("not-" if negative else "") + NAMES.get(plain, plain)


def model_values(given: Mapping[str, Any], space: Space, limits: Limits) -> dict[str, Any]:
    """Values of JSON as what the model reads: texts, bytes of pictures, token ids, arrays.

    Raises:
        FourMError: the model has no such modality, or a value is of no form that it could be
    """
    return {
        NAMES.get(name, name): _model_value(NAMES.get(name, name), value, space, limits)
        for name, value in given.items()
    }


def _model_value(name: str, value: Any, space: Space, limits: Limits) -> Any:
    if isinstance(value, list):
        return _array(name, value)
    if isinstance(value, bytes) or not _is_text(name, space):
        return picture(name, value, _PICTURE, limits)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"'{name}' should be a text that says something, got {str(value)[:60]!r}")
    return short_enough(name, value, limits)


def _is_text(name: str, space: Space) -> bool:
    if space.predictor is None:
        return name in (TEXT, "text")
    entries = {m.name: m for m in space.predictor.pipe.model.config.inputs}
    return entries[find_modality(name, entries, role="input")].kind == "sequence"


def _array(name: str, value: list[Any]) -> Any:
    """Token ids as they are, other numbers as an array."""
    if value and all(type(v) is int for v in value):
        if max(map(abs, value)) >= 1 << 31:
            raise ConfigError(f"'{name}' should hold token ids below {1 << 31}")
        return value
    try:
        return np.array(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"'{name}' should hold numbers in rows of one length") from None
