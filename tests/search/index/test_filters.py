"""Conditions: what passes means what it says, all else is refused in a sentence and at once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_lite.errors import ConfigError
from fourm_lite.search.index.filters import filter_sql
from fourm_lite.search.index.index import Index

ROWS = {
    "Year": [1999, 2005, 2024],
    "size": [0.5, 2.5, 40.0],
    "title": ["a dog", "it's", None],
    "flag": [True, False, None],
    "tags": [["x"], ["y", "z"], []],
    "exif": [{"iso": 100}, {"iso": 400}, {"iso": 800}],
    "my column": [1, 2, 3],
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("filters") / "idx", space="toy")
    index.add(["a", "b", "c"], np.eye(3, dtype=np.float32), **ROWS)
    return index


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("Year > 2000", "bc"), ("year > 2000", "bc"), ('"Year" > 2000', "bc"),
        ("Year between 2000 and 2010", "b"), ("Year not between 2000 and 2010", "ac"),
        ("Year % 2 = 1 and size < 2", "a"), ("-Year < -2000", "bc"), ("Year in (1999, -1)", "a"),
        ("Year not in (1999)", "bc"), ("title like 'a%'", "a"), ("title not like 'a%'", "b"),
        ("title ilike 'A%'", "a"), ("title = 'it''s'", "b"), ("title is null", "c"),
        ("title is not null", "ab"), ("flag", "a"), ("not flag", "b"), ("flag is not true", "bc"),
        ("exif.iso > 300", "bc"), ("exif['iso'] > 300", "bc"), ("`my column` = 2", "b"),
        ("array_has(tags, 'z')", "b"), ("lower(title) = 'a dog' or size >= 40", "ac"),
        ("length(title) = 4", "b"), ("starts_with(title, 'a')", "a"), ("isnan(size)", ""),
        ("cast(Year as string) = '1999'", "a"), ("cast(size as double) * 2 > 5.0", "c"),
        ("coalesce(title, 'none') = 'none'", "c"), ("true", "abc"), ("not not flag", "a"),
        ("(((Year > 2000)))", "bc"), ("date '2020-01-01' > date '2019-01-01'", "abc"),
    ],
)  # fmt: skip
def test_a_condition_keeps_the_rows_that_it_says(index, where, ids):
    found = [i for batch in index.scan(["id"], where) for i in batch.column(0).to_pylist()]

    assert found == list(ids)


@pytest.mark.parametrize(
    "where",
    [
        "repeat(title, 1000000000) = 'x'", "lpad(title, 1000000000, 'x') = 'x'", "now() > Year",
        "Year in (select 1)", "Year > (select 1)", "exists (select 1)", "Year > 1; drop table t",
        "Year > 1 -- x", "Year > 1 /* x */", "case when flag then true end", "title || 'a' = 'b'",
        "regexp_match(title, 'a')", "title rlike 'a'", "title similar to 'a'", "count(*) > 1",
        "Year > 1 limit 3", "Year > 1 order by size", "Year = any(tags)", "Year & 1 = 1",
        "cast(Year as decimal(38, 2)) > 1", "cast(tags as array<int>) = 1", "interval '1' day > 1",
        "select 1", "1 union select 1", "Year > ?", "Year > :a", "a -> 'b' = 1", "(1, 2) = (1, 2)",
        "Year >", "", "  ", None, 3, "(", ";", "'", "Year", "1", "'a'", "nowhere = 1",
        "lower() = 'a'", "abs(Year, 1, 2) > 1", "array_has(tags, 'a', 'b')", "Year > 1" * 2,
        f"Year > {'9' * 41}", "x" * 30_000, "a.b.c.d = 1", "`a``b` = 1", "\0", "\x1b[2J = 1",
    ],
)  # fmt: skip
def test_all_else_is_refused_in_a_sentence(index, where):
    with pytest.raises(ConfigError) as caught:
        list(index.scan(["id"], where) if where is not None else [filter_sql(where)])

    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    "build",
    [
        lambda n: "(" * n + "Year > 0" + ")" * n, lambda n: "not " * n + "flag",
        lambda n: "- " * n + "1 > 0", lambda n: "lower(" * n + "title" + ")" * n + " = 'a'",
        lambda n: "Year" + " + 1" * n + " > 0", lambda n: " and ".join(["flag"] * n),
        lambda n: " or ".join(["flag"] * n), lambda n: "cast(" * n + "Year as int)" * n,
        lambda n: "exif" + "['a']" * n + " > 0", lambda n: "exif" + ".a" * n + " > 0",
        lambda n: "case when " * n, lambda n: "Year between " * n, lambda n: "select " * n,
        lambda n: "[" * n, lambda n: "{" * n, lambda n: "a(" * n, lambda n: "Year in (" * n,
    ],
)  # fmt: skip
@pytest.mark.parametrize("count", [30, 600, 5_000])
def test_depth_and_length_end_at_once(index, build, count):
    started = time.process_time()

    with contextlib.suppress(ConfigError):
        list(index.scan(["id"], build(count)))

    assert time.process_time() - started < 2


def test_a_list_of_many_values_passes(index):
    values = ", ".join(map(str, range(1000, 2000)))

    assert [b.num_rows for b in index.scan(["id"], f"Year in ({values})")] == [1]


KEYWORDS = "and or not in like is null true false between cast as int string select from case when"
SIGNS = "\". , ( ) [ ] ' ` - + * / % = < > != ; : ? @ # $ & | ^ ~ \\ \n \0"
OTHERS = "Year size title flag tags exif then end exists interval lower length 1 2.5 'a' é"
WORDS = st.sampled_from(f"{KEYWORDS} {SIGNS} {OTHERS}".split(" "))


@given(st.lists(WORDS, max_size=14).map(" ".join))
@settings(max_examples=150, deadline=None)
def test_any_words_give_rows_or_our_error(index, where):
    with contextlib.suppress(ConfigError):
        list(index.scan(["id"], where))


FIRST_CONDITIONS = """
import sys, threading, time
from fourm_lite.search.index.filters import filter_sql
sys.setswitchinterval(1e-6)
start, told = threading.Barrier(16), []
def ask(number):
    start.wait()
    time.sleep(number * 0.005)  # some come while the first is in the middle of it
    try:
        told.append(filter_sql(f"n = {number}") == f"n = {number}")
    except Exception as error:
        told.append(repr(error))
threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert told == [True] * 16, told
"""


def test_threads_may_ask_the_first_condition_of_a_process_at_once():
    done = subprocess.run([sys.executable, "-c", FIRST_CONDITIONS], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr[-1500:]


def test_an_unknown_column_is_answered_with_the_columns_of_the_rows_alone(index):
    with pytest.raises(ConfigError) as caught:
        index.search([1.0, 0, 0], where="licence = 'cc0'")

    assert str(caught.value).endswith(
        'there is no column licence, only id, vector, "Year", size, title, flag, tags, exif, '
        '"my column"'
    )
    with pytest.raises(ConfigError, match=r"there is no column sizes. Did you mean 'size'\?$"):
        index.search([1.0, 0, 0], where="sizes > 1")


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("year > 3; DROP TABLE", r"at letter 20, 'TABLE'"),
        ("year 2020", r"at letter 9, '2020'"),
        ("title = 'it", "a quotation mark"),
    ],
)
def test_a_condition_that_cannot_be_read_is_told_by_its_place(index, where, place):
    with pytest.raises(ConfigError, match=place) as refused:
        index.search(np.eye(3, dtype=np.float32)[0], where=where)

    assert "sqlglot" not in str(refused.value)
    assert "Token" not in str(refused.value)
