"""Columns whose type drifts keep every value, and what is missing passes no filter."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fourm_lite.errors import ConfigError
from fourm_lite.photos.sources import open_sources
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import index_items


@pytest.fixture
def index(tmp_path):
    return Index.create(tmp_path / "idx", space="toy")


def values_of(index, name):
    table = pa.Table.from_batches(index.scan(["id", name]))
    return dict(zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True))


DRIFTS = [
    [5, 5.5, 7],
    [[], ["x"], ["y", "z"]],
    [{}, {"a": 1}, {"b": {"c": "x"}}],
    [{"a": 1, "k": "v"}, {"a": 1.5}, {"a": 2, "d": [1]}],
    [[1], [2.5], [3]],
    [None, 1, 2],
    [{"a": []}, {"a": ["x"]}, {"a": None}],
]


def plain(value):
    """The value less what says nothing, which a table does not tell apart."""
    if isinstance(value, dict):
        rest = {k: plain(v) for k, v in value.items()}
        return {k: v for k, v in rest.items() if v is not None} or None
    return value if value != [] else None


@pytest.mark.parametrize("values", DRIFTS, ids=str)
def test_a_column_takes_what_comes_and_keeps_what_was_there(index, values):
    for number, value in enumerate(values):
        index.add([f"r{number}"], np.eye(3)[[number]], x=[value])

    found = values_of(index, "x")

    assert {k: plain(v) for k, v in found.items()} == {
        f"r{i}": plain(v) for i, v in enumerate(values)
    }
    assert index.search([1, 0, 0], k=1).ids == ["r0"]


@pytest.mark.parametrize("values", DRIFTS, ids=str)
def test_no_photo_is_lost_to_a_drifting_column(tmp_path, index, values):
    rows = [{"file": f"{i}.png", "x": value} for i, value in enumerate(values)]
    for i, _ in enumerate(values):
        Image.new("RGB", (8, 8), (40 * i, 9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def embed(pictures):
        return np.stack([np.asarray(p.resize((2, 2)), np.float32).ravel() + 1 for p in pictures])

    source = [tmp_path / "l.jsonl"]
    report = index_items(open_sources(source), embed, index, batch_size=1, commit_rows=1)

    assert (report.added, report.unreadable) == (3, [])
    assert [plain(v) for v in values_of(index, "x").values()] == [plain(v) for v in values]


def test_filters_work_on_a_column_that_got_fractions(index):
    index.add(["a", "b"], np.eye(2), x=[1, 9])
    index.add(["c"], [[1, 1]], x=[5.5])

    assert set(index.search([1, 1], where="x > 5").ids) == {"b", "c"}


def test_whole_numbers_that_are_no_fractions_are_not_rounded(index):
    index.add(["a"], [[1, 0]], x=[2**53 + 1])

    with pytest.raises(ConfigError, match="column of their own"):
        index.add(["b"], [[0, 1]], x=[0.5])
    assert values_of(index, "x") == {"a": 2**53 + 1}


def test_what_has_no_common_type_is_refused_and_changes_nothing(index):
    index.add(["a"], [[1, 0]], x=[1], y=[1])

    with pytest.raises(ConfigError, match="column 'x' is int64"):
        index.add(["b"], [[0, 1]], x=["one"], y=[1.5])
    assert str(index.info()["columns"]["y"]) == "int64"


def test_a_widening_that_was_stopped_is_finished(index, monkeypatch):
    index.add(["a"], [[1, 0]], x=[1])

    def stopped(change):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        type(index._handle.rows._table), "alter_columns", lambda self, _: stopped(_)
    )
    with pytest.raises(KeyboardInterrupt):
        index.add(["b"], [[0, 1]], x=[1.5])
    monkeypatch.undo()
    index.add(["b"], [[0, 1]], x=[1.5])

    assert values_of(index, "x") == {"a": 1.0, "b": 1.5}


@pytest.mark.parametrize(
    "scores",
    [
        [6.0, 4.0, float("nan")],
        np.array([6, 4, np.nan], np.float32),
        pa.array([6.0, 4.0, float("nan")]),
        pa.chunked_array([[6.0], [4.0, float("nan")]]),
    ],
)
def test_a_number_that_is_missing_passes_no_bound(index, scores):
    index.add(["good", "bad", "unknown"], np.eye(3), score=scores)

    assert index.search([1, 1, 1], where="score > 5").ids == ["good"]
    assert index.search([1, 1, 1], where="score <= 5").ids == ["bad"]
    assert index.search([1, 1, 1], where="score IS NULL").ids == ["unknown"]


def test_a_missing_number_inside_an_object_passes_no_bound(index):
    index.add(["a", "b"], np.eye(2), exif=[{"iso": 100.0}, {"iso": float("nan")}])

    assert index.search([1, 1], where="exif.iso > 5").ids == ["a"]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("x > 5", {"good"}),
        ("X > 5", {"good"}),
        ("NOT (x <= 5)", {"good"}),
        ("x BETWEEN 5 AND 1e300", {"good"}),
        ("x != 4 OR `x` = 4", {"good", "bad"}),
        ("-x < -5", {"good"}),
        ("exif.iso > 5", {"good"}),
        ("exif['iso'] > 5", {"good"}),
        ("x IS NULL", {"unknown"}),
        ("isnan(x)", {"unknown"}),
        ("n > 1", {"bad", "unknown"}),
    ],
)
def test_a_number_that_an_older_index_misses_passes_no_bound(index, where, found, monkeypatch):
    import fourm_lite.search.index.rows as rows

    monkeypatch.setattr(rows, "without_nan", lambda array: array)  # as before
    values = [6.0, 4.0, float("nan")]
    objects = [{"iso": value} for value in values]
    index.add(["good", "bad", "unknown"], np.eye(3), x=values, exif=objects, n=[1, 2, 3])

    assert set(index.search([1, 1, 1], where=where).ids) == found
    assert {i for b in index.scan(["id"], where) for i in b.column(0).to_pylist()} == found


def test_ids_too_large_for_the_table_are_refused(index):
    with pytest.raises(ConfigError, match="int64"):
        index.add(np.array([1, 2**63], np.uint64), np.eye(2))


@pytest.mark.parametrize("kind", [pa.list_(pa.null()), pa.struct([("k", pa.null())])], ids=str)
def test_an_older_index_whose_column_holds_nothing_takes_the_first_entry(index, kind):
    index.add(["a"], [[1, 0]])
    index._handle.rows.add_columns([pa.field("x", kind)])
    value = ["x"] if pa.types.is_list(kind) else {"k": "x"}

    index.add(["b"], [[0, 1]], x=[value])

    assert values_of(index, "x") == {"a": None, "b": value}


@pytest.mark.parametrize("call", [Index.open, lambda path: Index.create(path, space="toy")])
def test_an_object_store_out_of_reach_is_told_of(call, monkeypatch):
    from pyarrow import fs

    def refused(path):
        raise OSError("When resolving the region: network unreachable")

    monkeypatch.setattr(fs, "FileSystem", SimpleNamespace(from_uri=refused))

    with pytest.raises(ConfigError, match=r"s3://bucket/index cannot be reached .*network"):
        call("s3://bucket/index")
