#!/usr/bin/env bash
# DuckDB and LanceDB: whether vectors can be searched depends on the road they took and on the column's name.
#
# Behaviour: DuckDB's FLOAT[4] (an array of fixed length) keeps its length on the way out through Arrow, but COPY TO
#   Parquet writes it as a list of any length, and reading the file back in DuckDB gives FLOAT[] too. LanceDB makes a
#   vector column of such a list if the column's name says vector or embedding, and leaves it a list, which search does not see,
#   under any other name. Neither step warns.
# Why a guess is wrong: the declared type says 4, every row has 4, the Arrow export of the same table says 4, and the
#   same Parquet file works once its column is renamed.
# Who meets it: whoever prepares embeddings in SQL (filter, join with captions, deduplicate) and hands a Parquet file
#   to a vector index; the error comes only at the first search: "There is no vector column in the data".
# Instead: cast to pyarrow.list_(pyarrow.float32(), 4) before the table is made.
#
# Seen with duckdb 2.0.1, lancedb 0.40.0, pyarrow 26.0.1:
#   Arrow export: fixed_size_list<: float>[4]
#   Parquet: list<element: float>, read again by DuckDB: FLOAT[]
#   LanceDB column "features": list<element: float>; search: There is no vector column in the data
#   LanceDB column "vector": fixed_size_list<item: float>[4]; search finds id 2
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet duckdb==2.0.1 lancedb==0.40.0 pyarrow==26.0.1
WORK=$work "$work/env/bin/python" - <<'PY'
import os, duckdb, lancedb, pyarrow as pa, pyarrow.parquet as pq

file = os.path.join(os.environ["WORK"], "vectors.parquet")
sql = duckdb.connect()
sql.sql("create table t as select i as id, [i * 1.0, 2, 3, 4]::FLOAT[4] as features from range(5) r(i)")
arrow = sql.sql("select * from t").to_arrow_table().schema.field("features").type
sql.sql(f"copy t to '{file}' (format parquet)")
stored = pq.read_schema(file).field("features").type
again = sql.sql(f"select typeof(features) from '{file}' limit 1").fetchall()[0][0]
print(f"Arrow export: {arrow}\nParquet: {stored}, read again by DuckDB: {again}")
assert pa.types.is_fixed_size_list(arrow) and pa.types.is_list(stored) and again == "FLOAT[]"
db = lancedb.connect(os.path.join(os.environ["WORK"], "db"))
table = pq.read_table(file)
lost = db.create_table("a", table)
kept = db.create_table("b", table.rename_columns(["id", "vector"]))
try:
    lost.search([2.0, 2, 3, 4]).limit(1).to_list()
    raise SystemExit("a list under another name is searched now")
except ValueError as error:
    said = str(error).split(".")[0]
    print(f'LanceDB column "features": {lost.schema.field("features").type}; search: {said}')
first = kept.search([2.0, 2, 3, 4]).limit(1).to_list()[0]["id"]
print(f'LanceDB column "vector": {kept.schema.field("vector").type}; search finds id {first}')
assert pa.types.is_fixed_size_list(kept.schema.field("vector").type) and first == 2
PY
