"""Vectors in files of others: each stays with its id, or its row is named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.vectors import open_vectors

ROWS = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
IDS = ["a", "b", "c", "d"]


def fixed(rows):
    return pa.array(rows, pa.list_(pa.float32(), 3))


def ragged(rows):
    return pa.array(rows, pa.list_(pa.float32()))


def as_parquet(folder, table):
    parquet.write_table(table, folder / "v.parquet")
    return folder / "v.parquet"


def as_lance(folder, table):
    import lance

    lance.write_dataset(table, folder / "v.lance")
    return (folder / "v.lance").rename(folder / "my vectors é.lance")


stores = pytest.mark.parametrize("store", [as_parquet, as_lance])


@stores
@pytest.mark.parametrize("make", [fixed, ragged])
def test_a_row_without_a_vector_is_named_and_moves_no_other(tmp_path, store, make):
    rows = [*ROWS[:2].tolist(), None, ROWS[3].tolist()]

    with pytest.raises(ConfigError, match="no vector in row 2"):
        open_vectors(store(tmp_path, pa.table({"id": IDS, "emb": make(rows)})))


@stores
@pytest.mark.parametrize("make", [fixed, ragged])
def test_vectors_and_ids_come_in_one_order(tmp_path, store, make):
    file = open_vectors(store(tmp_path, pa.table({"id": IDS, "vector": make(ROWS.tolist())})))

    assert file.ids == IDS
    np.testing.assert_array_equal(file.rows(0), ROWS)


def test_a_column_of_tensors_holds_vectors(tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(ROWS)

    file = open_vectors(as_parquet(tmp_path, pa.table({"id": IDS, "embedding": tensors})))

    assert file.ids == IDS
    np.testing.assert_array_equal(file.rows(0), ROWS)


def test_ids_of_another_length_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", vectors=ROWS, ids=np.array(IDS[:3]))
    (tmp_path / "ids.txt").write_text("\n".join(IDS))

    with pytest.raises(ShapeError, match="4 vectors and 3 'ids'"):
        open_vectors(tmp_path / "v.npz")
    assert open_vectors(tmp_path / "v.npz", ids=tmp_path / "ids.txt").ids == IDS


def test_a_list_of_ids_is_cut_at_line_ends_alone(tmp_path):
    np.save(tmp_path / "v.npy", ROWS)
    names = ["a\u2028b", "c\x0bd", "e", "f"]
    (tmp_path / "ids.txt").write_bytes(("\r\n".join(names) + "\r\n").encode())

    assert open_vectors(tmp_path / "v.npy", ids=tmp_path / "ids.txt").ids == names
