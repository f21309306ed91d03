import time
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.index.ann import Ann
from fourm_lite.search.index.index import Index

WIDTH = 16


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def unit(rng, count, width=WIDTH):
    v = rng.standard_normal((count, width)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def names(count, start=0):
    return [f"img{i:05d}" for i in range(start, start + count)]


@pytest.fixture
def index(tmp_path):
    return Index.create(tmp_path / "idx", space="toy", model="m-1", licence="CC0")


def brute_force(vectors, query, k):
    return np.argsort(-(vectors @ query), kind="stable")[:k]


@pytest.mark.parametrize("engine", ["memory", "scan"])
def test_exact_search_equals_brute_force_in_order(index, rng, engine):
    vectors = unit(rng, 500)
    index.add(names(200), vectors[:200])
    index.add(names(300, 200), vectors[200:])

    for query in unit(rng, 20):
        hits = index.search(query, k=7, engine=engine)

        expected = brute_force(vectors, query, 7)
        assert hits.ids == [f"img{i:05d}" for i in expected]
        np.testing.assert_allclose(hits.scores, vectors[expected] @ query, atol=1e-6)


@pytest.mark.parametrize("engine", ["memory", "scan"])
def test_many_queries_give_what_each_gives_alone(index, rng, engine):
    index.add(names(300), unit(rng, 300))
    queries = unit(rng, 9)

    together = index.search_many(queries, k=5, engine=engine)

    assert [h.ids for h in together] == [index.search(q, k=5).ids for q in queries]


def test_equal_scores_come_in_the_order_of_adding(index):
    vector = np.eye(WIDTH, dtype=np.float32)[0]
    index.add(["c", "a", "b"], np.stack([vector] * 3))
    index.add(["0"], vector[None])

    assert index.search(vector, k=3).ids == ["c", "a", "b"]


def test_more_hits_than_rows_gives_all_rows(index, rng):
    index.add(names(3), unit(rng, 3))

    assert len(index.search(unit(rng, 1)[0], k=50)) == 3


def test_an_empty_index_answers_with_no_hits(index, rng):
    assert len(index) == 0
    assert index.search(unit(rng, 1)[0]).ids == []
    assert index.info()["rows"] == 0


def test_integer_ids_come_back_as_integers(index, rng):
    vectors = unit(rng, 10)
    index.add(np.arange(10), vectors)

    assert index.search(vectors[7], k=1).ids == [7]
    with pytest.raises(ConfigError, match="'id' is int64"):
        index.add(["text"], unit(rng, 1))


def test_vectors_are_made_unit_length_and_unit_ones_keep_their_bits(index, rng):
    vectors = unit(rng, 4)
    index.add(names(4), vectors)
    index.add(["long"], 5 * vectors[:1])

    np.testing.assert_array_equal(index.vectors(names(4)), vectors)
    np.testing.assert_allclose(index.vectors(["long"]), vectors[:1], atol=1e-6)


def test_upsert_replaces_known_rows_and_adds_new_ones(index, rng):
    old, new = unit(rng, 3), unit(rng, 2)
    index.add(["a", "b", "c"], old, year=[1, 2, 3])

    assert index.upsert(["b", "d"], new, year=[20, 40]) == (1, 1)

    table = index.get(["a", "b", "c", "d"])
    assert table["year"].to_pylist() == [1, 20, 3, 40]
    np.testing.assert_array_equal(
        index.vectors(["a", "b", "c", "d"]), [old[0], new[0], old[2], new[1]]
    )


def test_delete_removes_exactly_the_named_rows(index, rng):
    index.add(["a", "it's", "c"], unit(rng, 3))

    assert index.delete(["it's", "unknown"]) == 1
    assert len(index) == 2
    assert sorted(index.search(unit(rng, 1)[0]).ids) == ["a", "c"]


def test_a_search_sees_what_another_handle_wrote(index, rng):
    vectors = unit(rng, 2)
    index.add(["a"], vectors[:1])
    index.search(vectors[0])

    Index.open(index.path).add(["b"], vectors[1:])

    assert index.search(vectors[1], k=1).ids == ["b"]


def test_rows_outlive_the_process_and_compaction(index, rng):
    vectors = unit(rng, 30)
    for i in range(0, 30, 5):
        index.add(names(5, i), vectors[i : i + 5], place=list(range(i, i + 5)))
    index.delete(names(1))

    index.compact(keep=timedelta(hours=1))

    again = Index.open(index.path)
    assert len(again) == 29
    assert again.get(["img00007"])["place"].to_pylist() == [7]
    assert again.search(vectors[12], k=1).ids == ["img00012"]


COLUMNS = {
    "text": pa.array(["köln", None, "犬'\";--"]),
    "number": pa.array([1, None, 3], pa.int16()),
    "day": pa.array([date(2020, 1, 1), None, date(2024, 2, 29)]),
    "blob": pa.array([b"\x00\xff", b"", None]),
    "captions": pa.array([["a", "b"], [], None]),
    "place": pa.array([{"lat": 1.5, "lon": None}, None, {"lat": 2.0, "lon": 3.0}]),
    "flag": pa.array([True, False, None]),
    "time": pa.array([1, 2, None], pa.timestamp("us", tz="UTC")),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_any_arrow_column_returns_as_it_was(index, rng, name):
    index.add(["a", "b", "c"], unit(rng, 3), **{name: COLUMNS[name]})

    back = index.get(["c", "a", "b"], [name])[name].combine_chunks()

    assert back.type == COLUMNS[name].type
    assert back.to_pylist() == COLUMNS[name].take(pa.array([2, 0, 1])).to_pylist()


def test_hits_carry_the_columns_of_their_own_row(index, rng):
    vectors = unit(rng, 50)
    index.add(names(50), vectors, number=list(range(50)))

    for place in (0, 17, 49):
        hit = index.search(vectors[place], k=3)[0]

        assert (hit.id, hit.columns["number"]) == (f"img{place:05d}", place)


def test_later_columns_are_null_in_earlier_rows_and_the_reverse(index, rng):
    index.add(["a"], unit(rng, 1), year=[1999])
    index.add(["b"], unit(rng, 1), title=["new"], year=[None])
    index.add(["c"], unit(rng, 1))

    table = index.get(["a", "b", "c"])

    assert table["year"].to_pylist() == [1999, None, None]
    assert table["title"].to_pylist() == [None, "new", None]


@pytest.mark.parametrize("engine", ["memory", "scan"])
def test_a_filter_keeps_only_rows_that_pass(index, rng, engine):
    vectors = unit(rng, 200)
    index.add(names(200), vectors, year=list(range(1900, 2100)))
    query = unit(rng, 1)[0]

    hits = index.search(query, k=5, where="year >= 2050 AND year < 2080", engine=engine)

    scores = np.where(np.arange(200) // 10 % 20 >= 15, vectors @ query, -9)
    scores[180:] = -9
    assert hits.ids == [f"img{i:05d}" for i in np.argsort(-scores)[:5]]
    assert index.search(query, where="year = 1", engine=engine).ids == []


@pytest.mark.parametrize(
    "where",
    [
        "id IN (SELECT id FROM items)",
        "1=1; DROP TABLE items",
        "1=1 -- x",
        "yeer > 3",
        "",
        "id = 'a' UNION SELECT 1",
        "read_csv('/etc/passwd') IS NOT NULL",
    ],
)
def test_a_filter_that_is_no_condition_on_the_row_is_refused(index, rng, where):
    index.add(["a"], unit(rng, 1), year=[3])

    with pytest.raises(ConfigError):
        index.search(unit(rng, 1)[0], where=where)

    assert len(index) == 1


def test_a_semicolon_inside_text_is_part_of_the_filter(index, rng):
    index.add(["a", "b"], unit(rng, 2), title=["x;y", "z"])

    assert index.search(unit(rng, 1)[0], where="title = 'x;y'").ids == ["a"]


def test_a_query_from_another_space_is_refused_and_both_are_named(index, rng):
    with pytest.raises(ConfigError, match=r"'toy'.*'tok_imagebind'"):
        index.search(unit(rng, 1)[0], space="tok_imagebind")
    with pytest.raises(ConfigError, match=r"'toy'.*'tok_imagebind'"):
        index.add(["a"], unit(rng, 1), space="tok_imagebind")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_and_nothing_is_written(index, rng, bad):
    vectors = unit(rng, 3)
    vectors[1, 2] = bad

    with pytest.raises(ConfigError, match="vector 1 is not finite"):
        index.add(names(3), vectors)
    with pytest.raises(ConfigError, match="not finite"):
        index.search(vectors[1])
    assert len(index) == 0


def test_wrong_widths_counts_and_zero_vectors_are_refused(index, rng):
    index.add(["a"], unit(rng, 1))

    with pytest.raises(ShapeError, match="width 16, got width 5"):
        index.add(["b"], unit(rng, 1, 5))
    with pytest.raises(ShapeError, match="width 16, got width 5"):
        index.search(unit(rng, 1, 5)[0])
    with pytest.raises(ShapeError, match="2 ids came with 1 vectors"):
        index.add(["b", "c"], unit(rng, 1))
    with pytest.raises(ShapeError, match="3 values for 1 ids"):
        index.add(["b"], unit(rng, 1), year=[1, 2, 3])
    with pytest.raises(ConfigError, match="zero"):
        index.add(["b"], np.zeros((1, WIDTH)))
    with pytest.raises(ShapeError, match="search_many"):
        index.search(unit(rng, 2))


def test_ids_that_stand_twice_or_are_known_are_refused(index, rng):
    index.add(["a", "b"], unit(rng, 2))

    with pytest.raises(ConfigError, match="'x' stands twice"):
        index.add(["x", "y", "x"], unit(rng, 3))
    with pytest.raises(ConfigError, match="such as 'b'; use upsert"):
        index.add(["c", "b"], unit(rng, 2))
    with pytest.raises(ConfigError, match="all text or all integers"):
        index.add(["c", 3], unit(rng, 2))
    assert len(index) == 2


def test_create_refuses_an_existing_index_and_open_a_missing_one(index, tmp_path):
    with pytest.raises(ConfigError, match="already"):
        Index.create(index.path, space="toy")
    with pytest.raises(ConfigError, match="no index"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Did you mean 'licence'"):
        Index.create(tmp_path / "x", space="toy", licens="CC0")
    assert not (tmp_path / "nowhere").exists()


def test_info_tells_the_manifest_the_size_and_the_engine(index, rng):
    index.add(names(300), unit(rng, 300), year=[1] * 300)

    told = index.info()

    assert told["rows"] == 300
    assert told["width"] == WIDTH
    assert told["columns"]["year"] == "int64"
    assert told["bytes"] > 300 * WIDTH * 4
    assert told["engine"] == "memory"
    assert told["manifest"]["licence"] == "CC0"
    assert Index.open(index.path, memory_limit=1000).info()["engine"] == "scan"


@pytest.mark.parametrize("kind", ["ivf_rq", "ivf_sq", "ivf_pq", "ivf_hnsw_sq"])
def test_past_the_memory_limit_the_approximate_index_answers_and_is_measured(tmp_path, rng, kind):
    index = Index.create(tmp_path / "big", space="toy", memory_limit=1)
    vectors = unit(rng, 600)
    index.add(names(600), vectors, year=[0, 1] * 300)
    with pytest.raises(ConfigError, match="build_ann"):
        index.check()
    index.build_ann(kind, partitions=4)

    everywhere = Ann(probes=4, refine=50)
    measured = index.check(k=5, queries=20, ann=everywhere)

    assert index.info()["engine"] == "ann"
    assert measured.recall >= 0.95
    assert index.search(vectors[3], k=1, ann=everywhere).ids == ["img00003"]
    odd = index.search(vectors[3], k=5, where="year = 1", columns=["year"], ann=everywhere)
    assert odd.columns["year"] == [1] * 5
    late = unit(rng, 1)
    index.add(["late"], late)
    assert index.search(late[0], k=1, ann=everywhere).ids == ["late"]


def test_too_few_rows_and_unknown_kinds_are_refused_by_build_ann(index, rng):
    index.add(names(20), unit(rng, 20))

    with pytest.raises(ConfigError, match="at least 256 rows, the index has 20"):
        index.build_ann()
    with pytest.raises(ConfigError, match="ivf_rq"):
        index.build_ann("ivf")
    with pytest.raises(ConfigError, match="index build"):
        index.search(unit(rng, 1)[0], engine="ann")


def test_an_index_lies_on_an_address_too(tmp_path, rng):
    address = (tmp_path / "remote").as_uri()
    index = Index.create(address, space="toy")
    vectors = unit(rng, 5)
    index.add(names(5), vectors)

    assert Index.open(address).search(vectors[2], k=1).ids == ["img00002"]
    assert Index.open(address).manifest.space == "toy"


def test_a_row_of_thousands_of_columns_is_refused_at_once(index, rng):
    index.add(["a"], unit(rng, 1), year=[1])
    many = {f"c{i}": [i] for i in range(5000)}
    started = time.monotonic()

    with pytest.raises(ConfigError, match="at most 1000 columns"):
        index.add(["b"], unit(rng, 1), **many)

    assert time.monotonic() - started < 1
    assert index.columns == ["id", "vector", "year"]


@pytest.mark.parametrize("name", ["a\0b", "\0", "a\ud800"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_name_that_the_engine_would_store_as_another_is_refused(index, rng, name, inside):
    column = {"a": [{name: 1}]} if inside else {name: [1]}
    index.add(["0"], unit(rng, 1), a=[{"b": 1}])

    with pytest.raises(ConfigError, match=r"Unicode text without NUL|not of one Arrow type"):
        index.add(["1"], unit(rng, 1), **column)

    assert len(index) == 1
