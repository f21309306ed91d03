"""Conditions on columns: a small grammar of SQL, read by a parser and written anew for the engine.

A condition comes from whoever asks, over the web too, and the engine's own SQL has functions that
take all memory. So only comparisons, logic, arithmetic, IN, BETWEEN, LIKE, IS NULL, casts and a few
functions pass, each of bounded size, whose work grows with the rows alone. What the engine gets is
written from the parsed tree: two parsers cannot read one text differently.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from fourm_lite.errors import ConfigError

MAX_LETTERS = 20_000
MAX_TOKENS = 3_000
MAX_DEPTH = 24
MAX_PARTS = 200
"""Comparisons, operators and calls of a condition; values of an IN list are not counted."""
MAX_DIGITS = 40

OPERATORS = {
    "EQ": "=", "NEQ": "!=", "GT": ">", "GTE": ">=", "LT": "<", "LTE": "<=",
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%", "Like": "LIKE", "ILike": "ILIKE",
}  # fmt: skip
FUNCTIONS = {
    "Lower": "lower", "Upper": "upper", "Length": "length", "Abs": "abs", "Round": "round",
    "Floor": "floor", "Ceil": "ceil", "IsNan": "isnan", "Coalesce": "coalesce",
    "StartsWith": "starts_with", "EndsWith": "ends_with", "Contains": "contains",
    "ArrayContains": "array_has",
}  # fmt: skip
CASTS = {
    "TINYINT": "TINYINT", "SMALLINT": "SMALLINT", "INT": "INT", "BIGINT": "BIGINT",
    "FLOAT": "FLOAT", "DOUBLE": "DOUBLE", "BOOLEAN": "BOOLEAN", "DATE": "DATE",
    "TIMESTAMP": "TIMESTAMP", "TEXT": "STRING", "VARCHAR": "STRING",
}  # fmt: skip
ALLOWED = (
    "a condition takes comparisons, AND, OR, NOT, arithmetic, IN, BETWEEN, LIKE, IS NULL, CAST and "
    f"the functions {', '.join(sorted(FUNCTIONS.values()))}"
)


_importing = threading.Lock()
"""The parser's modules import each other: a second thread may not meet them half made."""


@functools.lru_cache(maxsize=64)
def filter_sql(where: str, with_nan: frozenset[str] = frozenset()) -> str:
    """The condition in the engine's own words.

    >>> filter_sql("year > 2020 AND title LIKE 'a%'")
    "(year > 2020) AND (title LIKE 'a%')"

    Args:
        where: the condition
        with_nan: columns, each part in backticks, that hold NaN: it counts as null, where the
            engine takes it for the largest number

    Raises:
        ConfigError: it is no single condition of the small grammar, or too large
    """
    if not isinstance(where, str) or not where.strip():
        raise ConfigError(f'where takes a SQL condition such as "year > 2020", got {where!r:.80}')
    if len(where) > MAX_LETTERS:
        raise ConfigError(
            f"where takes at most {MAX_LETTERS} letters, got {len(where)}; ask several times"
        )
    return _Writer(with_nan).write(_parsed(where), 0)


def in_filter(column: str, values: Sequence[str | int]) -> str:
    """A SQL condition: the column is one of these values; text is quoted.

    >>> in_filter("id", ["a", "it's"])
    "`id` IN ('a', 'it''s')"
    """
    quoted = [
        "'" + v.replace("'", "''") + "'" if isinstance(v, str) else str(int(v)) for v in values
    ]
    return f"`{column}` IN ({', '.join(quoted)})"


def _parsed(where: str) -> Any:
    with _importing:
        from sqlglot.errors import SqlglotError

        dialect = _dialect()
    try:
        tokens = dialect.tokenize(where)
        _check_tokens(tokens)
        trees = dialect.parser().parse(tokens, where)
    except SqlglotError as error:
        raise _refusal(where, f"cannot be read{_where(error)}") from error
    except RecursionError as error:
        raise _refusal(where, "is nested too deeply") from error
    if len(trees) != 1 or trees[0] is None:
        raise _refusal(where, "should be one condition, without ';' or comments")
    if any(node.comments for node in trees[0].walk()):
        raise _refusal(where, "should be one condition, without ';' or comments")
    return trees[0]


@functools.cache
def _dialect() -> Any:
    """Names in double quotes or backticks, text in single quotes; a backslash is a letter."""
    from sqlglot.dialects.dialect import Dialect
    from sqlglot.tokens import Tokenizer as Words

    class Condition(Dialect):
        class Tokenizer(Words):
            IDENTIFIERS: ClassVar[list[str | tuple[str, str]]] = ['"', "`"]

    return Condition()


def _check_tokens(tokens: Any) -> None:
    """Bounds what the parser, which calls itself, is given.

    Raises:
        ConfigError: there are too many words, or brackets and NOTs stand in each other too deeply
    """
    if len(tokens) > MAX_TOKENS:
        raise ConfigError(f"where takes at most {MAX_TOKENS} words and signs, got {len(tokens)}")
    depth = run = 0
    for token in tokens:
        kind = token.token_type.name
        depth += (kind in ("L_PAREN", "L_BRACKET", "CASE")) - (kind in ("R_PAREN", "R_BRACKET"))
        run = run + 1 if kind in ("NOT", "DASH", "PLUS", "TILDE") else 0
        if max(depth, run) > MAX_DEPTH:
            raise ConfigError(f"where takes at most {MAX_DEPTH} brackets in each other, got more")


def _where(error: Any) -> str:
    """At which letter a condition ends to make sense, as far as the parser tells."""
    told = getattr(error, "errors", None)
    if told:
        return f" (at letter {told[0]['col']}, {str(told[0]['highlight'])[:40]!r})"
    return " (a quotation mark or a comment has no end)"


def _refusal(where: str, reason: str) -> ConfigError:
    return ConfigError(f"the filter {where[:200]!r} {reason}; {ALLOWED}")


class _Writer:
    """Writes a tree down; whatever the grammar does not name is refused where it is met."""

    def __init__(self, with_nan: frozenset[str]) -> None:
        self.parts = 0
        self.with_nan = with_nan

    def write(self, node: Any, depth: int) -> str:
        """One node with all below it."""
        kind = type(node).__name__
        self.parts += kind not in ("Literal", "Null", "Boolean", "Neg")
        if depth > MAX_DEPTH or self.parts > 2 * MAX_PARTS:
            raise ConfigError(
                f"where takes at most {MAX_PARTS} comparisons and {MAX_DEPTH} levels, got more"
            )
        writer: Callable[[Any, int], str] | None = getattr(self, f"_{kind.lower()}", None)
        if kind in OPERATORS:
            return self._operator(node, depth)
        if kind in FUNCTIONS:
            return self._function(node, depth)
        if writer is None:
            raise ConfigError(f"where does not take {node.sql()[:80]!r}; {ALLOWED}")
        return writer(node, depth + 1)

    def _inner(self, node: Any, depth: int) -> str:
        """An operand, in brackets where it is more than a name or a value."""
        text = self.write(node, depth)
        plain = type(node).__name__ in ("Column", "Literal", "Boolean", "Null", "Paren", *FUNCTIONS)
        return text if plain else f"({text})"

    def _only(self, node: Any, *names: str) -> None:
        """Refuses a node with more to it than is written down."""
        more = [name for name, value in node.args.items() if value and name not in names]
        if more:
            raise ConfigError(f"where does not take {node.sql()[:80]!r} ({more[0]}); {ALLOWED}")

    def _operator(self, node: Any, depth: int) -> str:
        self._only(node, "this", "expression", "typed", "safe", "negate")
        left, right = (self._inner(side, depth + 1) for side in (node.this, node.expression))
        negated = "NOT " if node.args.get("negate") else ""
        return f"{left} {negated}{OPERATORS[type(node).__name__]} {right}"

    def _function(self, node: Any, depth: int) -> str:
        arguments = []
        known = self.with_nan
        self.with_nan = frozenset() if type(node).__name__ == "IsNan" else known
        for value in node.args.values():
            for one in value if isinstance(value, list) else [value]:
                if hasattr(one, "args"):
                    arguments.append(self.write(one, depth + 1))
        self.with_nan = known
        return f"{FUNCTIONS[type(node).__name__]}({', '.join(arguments)})"

    def _and(self, node: Any, depth: int) -> str:
        return " AND ".join(f"({self.write(part, depth)})" for part in node.flatten())

    def _or(self, node: Any, depth: int) -> str:
        return " OR ".join(f"({self.write(part, depth)})" for part in node.flatten())

    def _not(self, node: Any, depth: int) -> str:
        if type(node.this).__name__ == "Is":  # IS NOT NULL
            return self._is(node.this, depth, "IS NOT")
        return f"NOT ({self.write(node.this, depth)})"

    def _paren(self, node: Any, depth: int) -> str:
        self._only(node, "this")
        return f"({self.write(node.this, depth)})"

    def _neg(self, node: Any, depth: int) -> str:
        return f"-{self._inner(node.this, depth)}"

    def _is(self, node: Any, depth: int, word: str = "IS") -> str:
        self._only(node, "this", "expression")
        if type(node.expression).__name__ not in ("Null", "Boolean"):
            raise ConfigError("where takes IS NULL, IS TRUE and IS FALSE, each also with NOT")
        return f"{self._inner(node.this, depth)} {word} {self.write(node.expression, depth)}"

    def _in(self, node: Any, depth: int) -> str:
        self._only(node, "this", "expressions")
        for value in node.expressions:
            inner = value.this if type(value).__name__ == "Neg" else value
            if type(inner).__name__ not in ("Literal", "Null", "Boolean"):
                raise ConfigError(f"where takes IN with values alone, got {value.sql()[:80]!r}")
        if not node.expressions:
            raise ConfigError("where takes IN with at least one value")
        values = ", ".join(self.write(value, depth) for value in node.expressions)
        return f"{self._inner(node.this, depth)} IN ({values})"

    def _between(self, node: Any, depth: int) -> str:
        self._only(node, "this", "low", "high")
        one, low, high = (self._inner(node.args[name], depth) for name in ("this", "low", "high"))
        return f"{one} BETWEEN {low} AND {high}"

    def _cast(self, node: Any, depth: int) -> str:
        self._only(node, "this", "to", "_type")
        kind = node.args["to"]
        name = getattr(kind.this, "name", str(kind.this))
        if name not in CASTS or kind.args.get("nested") or kind.expressions:
            raise ConfigError(
                f"where casts to {', '.join(sorted(set(CASTS.values())))}, got {kind.sql()[:80]!r}"
            )
        return f"CAST({self.write(node.this, depth)} AS {CASTS[name]})"

    def _column(self, node: Any, _: int) -> str:
        return self._number(".".join(self._identifier(part) for part in node.parts))

    def _number(self, name: str) -> str:
        """A column, with null in the place of NaN."""
        plain = name.replace("`", "").lower()
        found = next((own for own in self.with_nan if own.replace("`", "").lower() == plain), "")
        # Inside of a function the engine finds a column by its exact name alone
        return f"nullif({found}, CAST('NaN' AS DOUBLE))" if found else name

    def _dot(self, node: Any, depth: int) -> str:
        if type(node.expression).__name__ != "Identifier":
            raise ConfigError(f"where does not take {node.sql()[:80]!r}; {ALLOWED}")
        return self._number(f"{self.write(node.this, depth)}.{self._identifier(node.expression)}")

    def _bracket(self, node: Any, depth: int) -> str:
        """A field of a column of tables: exif['iso']."""
        inner = node.expressions
        named = len(inner) == 1 and type(inner[0]).__name__ == "Literal" and inner[0].is_string
        if not named or type(node.this).__name__ not in ("Column", "Bracket"):
            raise ConfigError(f"where does not take {node.sql()[:80]!r}; {ALLOWED}")
        return self._number(f"{self.write(node.this, depth)}.{_quoted_name(inner[0].this)}")

    def _identifier(self, node: Any) -> str:
        if type(node).__name__ != "Identifier":
            raise ConfigError(f"where does not take {node.sql()[:80]!r}; {ALLOWED}")
        # The engine finds a bare word in any case, and a quoted one as it stands
        bare = not node.args.get("quoted") and re.fullmatch(r"[A-Za-z_]\w*", node.this, re.ASCII)
        return str(node.this) if bare else _quoted_name(node.this)

    def _literal(self, node: Any, _: int) -> str:
        if node.is_string:
            return "'" + node.this.replace("'", "''") + "'"
        if len(node.this) > MAX_DIGITS or not re.fullmatch(r"[0-9.]+([eE][+-]?\d+)?", node.this):
            raise ConfigError(
                f"where takes numbers of at most {MAX_DIGITS} digits, got {node.this[:80]!r}"
            )
        return str(node.this)

    def _boolean(self, node: Any, _: int) -> str:
        return "TRUE" if node.this else "FALSE"

    def _null(self, *_: Any) -> str:
        return "NULL"


def _quoted_name(name: str) -> str:
    if "`" in name or not name:
        raise ConfigError(f"where takes names of columns without '`', got {name[:80]!r}")
    return f"`{name}`"
