"""Types of columns that drift: what was whole becomes a fraction, what was empty gets an entry.

A table has one type a column and the first rows choose it. Later rows may need a wider one, which
holds all that is there already; only where there is none does a row not fit.
"""

from __future__ import annotations

import json
from typing import Any

from fourm_lite.errors import ConfigError

EXACT = 1 << 53
"""Whole numbers up to here are the same as float64."""


def without_nan(array: Any) -> Any:
    """An Arrow array with null in the place of NaN, which passes every bound of a filter."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(array.type):
        return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    if pa.types.is_struct(array.type) and array.type.num_fields:
        fields = [without_nan(pc.struct_field(array, [i])) for i in range(array.type.num_fields)]
        return pa.StructArray.from_arrays(
            fields, fields=list(array.type), mask=array.is_null() if array.null_count else None
        )
    return array


def float_columns(fields: Any, above: str = "") -> list[str]:
    """The columns of fractions, also inside of objects, as a condition names them.

    >>> import pyarrow as pa
    >>> float_columns(pa.schema([("a", pa.float32()), ("b", pa.struct([("c", pa.float64())]))]))
    ['`a`', '`b`.`c`']
    """
    import pyarrow as pa

    found = []
    for field in fields:
        name = f"{above}`{field.name}`"
        if pa.types.is_struct(field.type):
            found += float_columns(field.type, f"{name}.")
        elif pa.types.is_floating(field.type) and "`" not in field.name:
            found.append(name)
    return found


def known_type(kind: Any) -> Any:
    """The part of a type that is known: that of ``[]`` and ``{}`` is not, and gives null."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = [field.with_type(known_type(field.type)) for field in kind]
        fields = [field for field in fields if not pa.types.is_null(field.type)]
        return pa.struct(fields) if fields else pa.null()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = known_type(kind.value_type)
        return pa.null() if pa.types.is_null(inner) else pa.list_(inner)
    return kind


def holds_nothing(kind: Any) -> bool:
    """Whether a type is that of ``[]`` and ``{}`` alone."""
    import pyarrow as pa

    return bool(pa.types.is_null(known_type(kind)))


def wider(old: Any, new: Any) -> Any:
    """The type that holds values of both, the old one where that does, or None."""
    import pyarrow as pa

    new = known_type(new)
    if pa.types.is_null(new) or new == old:
        return old
    if holds_nothing(old):
        return new
    schemas = [pa.schema([pa.field("x", kind)]) for kind in (old, new)]
    try:
        found = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None
    return old if found == old or _is_text(old) else found


def fitted(column: Any, kind: Any) -> Any:
    """A column in a type that holds all of its values.

    Raises:
        pyarrow.ArrowInvalid: it does not
    """
    import pyarrow as pa

    if column.type == kind:
        return column
    if pa.types.is_nested(kind):
        return pa.chunked_array([pa.array(column.to_pylist(), kind)], kind)
    return column.cast(kind)


def reaches(old: Any, new: Any) -> bool:
    """Whether whole numbers of a column become float64, which holds not all of them."""
    import pyarrow as pa

    return bool(pa.types.is_integer(old) and pa.types.is_floating(new))


def shared_type(old: Any, new: Any) -> Any:
    """The new type without the fields that the old one lacks: what a cast can make."""
    import pyarrow as pa

    if pa.types.is_struct(old) and pa.types.is_struct(new):
        names = [field.name for field in new]
        return pa.struct(
            [f.with_type(shared_type(f.type, new.field(names.index(f.name)).type)) for f in old]
        )
    return new


def missing_fields(old: Any, new: Any) -> Any:
    """The fields that a type of objects lacks, as a type of objects; None where it lacks none."""
    import pyarrow as pa

    if not pa.types.is_struct(old):
        return None
    known = {field.name: field.type for field in old}
    found = []
    for field in new:
        kind = (
            field.type if field.name not in known else missing_fields(known[field.name], field.type)
        )
        if kind is not None:
            found.append(field.with_type(kind))
    return pa.struct(found) if found else None


def cast_name(kind: Any) -> str:
    """A type in the words of the engine's `arrow_cast`.

    >>> import pyarrow as pa
    >>> cast_name(pa.struct([("a", pa.list_(pa.float64()))]))
    'Struct("a": nullable List(Float64))'

    Raises:
        ConfigError: it has no such word
    """
    import pyarrow as pa

    if pa.types.is_list(kind):
        return f"List({cast_name(kind.value_type)})"
    if pa.types.is_struct(kind):
        inner = ", ".join(f"{json.dumps(f.name)}: nullable {cast_name(f.type)}" for f in kind)
        return f"Struct({inner})"
    words = {"string": "Utf8", "large_string": "LargeUtf8", "bool": "Boolean", "double": "Float64",
             "float": "Float32", "int64": "Int64", "int32": "Int32"}  # fmt: skip
    if str(kind) not in words:
        raise ConfigError(f"a column cannot become {kind} once it has another type")
    return words[str(kind)]


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))
