"""From ids, vectors, codes and the user's columns to one checked Arrow table.

Everything that can be wrong with rows is found here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.reading.regular import budget
from fourm_lite.search.index.codes import Codes, CodeStore
from fourm_lite.search.index.drift import fitted, known_type, wider, without_nan
from fourm_lite.search.index.hits import Id
from fourm_lite.unit import Floats

if TYPE_CHECKING:
    from fourm_lite.search.index.storage import Rows

RESERVED = ("id", "vector", "codes")


def check_ids(ids: Iterable[Any]) -> list[Id]:
    """The ids as a list of text or of integers; each once.

    Raises:
        ConfigError: mixed or other types, an empty text, or an id that stands there twice
    """
    if isinstance(ids, str | bytes):
        raise ConfigError(f"ids are a list with one id a row, got the text {ids!r}")
    plain = [i.item() if isinstance(i, np.generic) else i for i in ids]
    large = next((i for i in plain if type(i) is int and not -(2**63) <= i < 2**63), None)
    if large is not None:
        raise ConfigError(f"ids that are numbers fit into int64, got {large}; give it as text")
    kinds = {type(i) for i in plain}
    if len(kinds) > 1 or not kinds <= {str, int}:
        names = ", ".join(sorted(k.__name__ for k in kinds))
        raise ConfigError(f"ids are all text or all integers, got {names}")
    if "" in plain:
        raise ConfigError(f"an id is empty (place {plain.index('')}); give every row a name")
    if len(set(plain)) < len(plain):
        seen: set[Id] = set()
        twice = next(i for i in plain if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise ConfigError(
            f"id {twice!r} stands twice in this call; ids name rows, so give each one once"
        )
    return plain


def check_columns(names: Iterable[str]) -> None:
    """Refuses more columns than an index can be asked with.

    Raises:
        ConfigError: there are too many
    """
    count, most = len(set(names) - set(RESERVED)), budget().columns
    if count > most:
        raise ConfigError(
            f"an index holds at most {most} columns, with these rows it would have {count}; put "
            "what belongs together into one column"
        )


def make_table(
    ids: Sequence[Id],
    vectors: Floats | None,
    codes: Codes | None,
    columns: Mapping[str, Any],
    store: CodeStore,
) -> Any:
    """One Arrow table with the columns id, vector and codes (where given) and the user's."""
    import pyarrow as pa

    kind = pa.int64() if ids and isinstance(ids[0], int) else pa.string()
    fields = [pa.field("id", kind, nullable=False, metadata=_compressed())]
    arrays: list[Any] = [pa.array(ids, kind)]
    if vectors is not None:
        flat = pa.array(vectors.reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
        fields.append(pa.field("vector", arrays[-1].type))
    if codes is not None:
        arrays.append(store.to_arrow(codes))
        fields.append(pa.field("codes", arrays[-1].type))
    for name, values in columns.items():
        array = _user_column(name, values, len(ids))
        arrays.append(array)
        fields.append(pa.field(name, array.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def new_fields(table: Any, schema: Any) -> list[Any]:
    """The fields of a table that a schema lacks, as far as their types are known."""
    import pyarrow as pa

    fields = [f.with_type(known_type(f.type)) for f in table.schema if f.name not in schema.names]
    return [field for field in fields if not pa.types.is_null(field.type)]


def wider_fields(table: Any, schema: Any) -> list[Any]:
    """The fields of a schema that need a wider type for what a table holds."""
    import pyarrow as pa

    found = []
    for field in schema:
        if field.name in RESERVED or field.name not in table.schema.names:
            continue
        column = table.column(field.name)
        kind = wider(field.type, column.type)
        if kind is None or kind == field.type:
            continue
        if not pa.types.is_nested(kind) and _fits(column, field.type):
            continue  # 5.0 among whole numbers
        found.append(field.with_type(kind))
    return found


def _fits(column: Any, kind: Any) -> bool:
    import pyarrow as pa

    try:
        column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def stored_form(table: Any, rows: Rows) -> Any:
    """Rows in the schema of the stored table, which is made or widened for them.

    Raises:
        ConfigError: a column has a type that the index cannot hold; then nothing is changed
    """
    import pyarrow as pa

    newest = rows.newest()  # each look is a request to a store
    check_columns([*(newest.schema.names if newest.exists else []), *table.schema.names])
    if not newest.exists:
        rows.create(pa.schema(new_fields(table, pa.schema([]))))
        newest = rows.newest()
    if newest.drafts:
        rows.mend()
        newest = rows.newest()
    schema = newest.schema
    wide = wider_fields(table, schema)
    for field in wide:
        schema = schema.set(schema.get_field_index(field.name), field)
    align(table, schema)  # types are refused before the table is widened
    for field in wide:
        rows.widen(field)
    new = new_fields(table, schema)
    if new:
        rows.add_columns(new)
    return align(table, rows.newest().schema if wide or new else newest.schema)


def align(table: Any, schema: Any) -> Any:
    """The table in the order and types of the schema; absent columns become null.

    Raises:
        ConfigError: a column has a type that the index cannot hold
    """
    import pyarrow as pa

    arrays = []
    for field in schema:
        if field.name not in table.schema.names:
            arrays.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        try:
            arrays.append(fitted(column, field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise ConfigError(
                f"column '{field.name}' is {field.type} in the index, got {column.type}: {error}"
            ) from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _user_column(name: str, values: Any, count: int) -> Any:
    import pyarrow as pa

    if name in RESERVED or name.startswith("_") or not name or "." in name:
        raise ConfigError(
            f"a column cannot be named '{name}'; names are free but for {', '.join(RESERVED)}, "
            "names with a dot and names that begin with '_'"
        )
    _check_spelling(name, name)
    if isinstance(values, pa.ChunkedArray):
        array = values.combine_chunks()
    elif isinstance(values, pa.Array):
        array = values
    else:
        values = list(values) if isinstance(values, np.ndarray) and values.ndim > 1 else values
        try:
            array = pa.array(values)
        except (ValueError, TypeError, OverflowError) as error:  # Arrow's own derive from these
            raise ConfigError(f"column '{name}' is not of one Arrow type: {error}") from error
    if len(array) != count:
        raise ShapeError(f"column '{name}' has {len(array)} values for {count} ids")
    _check_fields(name, array.type)
    return without_nan(array)


def _check_fields(column: str, kind: Any) -> None:
    """Refuses names of inner fields that the engine would store as others."""
    import pyarrow as pa

    if not pa.types.is_nested(kind):
        return
    for field in (kind.field(i) for i in range(kind.num_fields)):
        _check_spelling(column, field.name)
        _check_fields(column, field.type)


def _check_spelling(column: str, name: str) -> None:
    """Refuses names that the engine cuts at a NUL, or that are no Unicode text.

    Raises:
        ConfigError: it is one; the message names the column
    """
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ConfigError(
            f"column {column!r} bears, or holds a field with, the name {name!r}; names are Unicode "
            "text without NUL"
        )


def _compressed() -> dict[bytes, bytes]:
    # Ids look alike; zstd halves them, which a codes-only index feels.
    return {b"lance-encoding:compression": b"zstd"}
