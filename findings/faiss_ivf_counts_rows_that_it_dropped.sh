#!/usr/bin/env bash
# FAISS: an inverted-file index counts rows that it does not hold.
#
# Behaviour: `IndexIVFFlat.add` of a matrix with a NaN or infinite row neither fails nor stores that row, but `ntotal`
#   grows by it, ids of later rows keep their place, and `reconstruct` of its id fails. A flat index stores the same row.
# Why a guess is wrong: "ntotal == len(vectors)" is the usual check that a build is complete (and that a resumed build
#   may go on from ntotal); it passes although rows are missing, and the very same data in IndexFlat has all of them.
# Who meets it: whoever embeds a large folder in float16, where a few vectors overflow or become NaN, and moves from
#   a flat to an inverted-file index as it grows: items vanish that no count shows.
# Instead: refuse vectors that are not finite, and compare the sum of the list sizes with ntotal.
#
# Seen with faiss-cpu 1.15.1, numpy 2.4.6:
#   1000 rows given, 2 of them not finite: ntotal 1000, rows in the lists 998
#   flat index of the same rows: ntotal 1000, reconstruct(5) holds nan: True
#   inverted file: reconstruct(5) raises RuntimeError
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet faiss-cpu==1.15.1 numpy==2.4.6
"$work/env/bin/python" - <<'PY'
import faiss, numpy as np

print("faiss", faiss.__version__)
rows = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
rows[5], rows[6] = np.nan, np.inf
index = faiss.IndexIVFFlat(faiss.IndexFlatL2(16), 16, 8)
index.train(rows[10:])
index.add(rows)
held = sum(index.invlists.list_size(i) for i in range(index.nlist))
print(f"1000 rows given, 2 of them not finite: ntotal {index.ntotal}, rows in the lists {held}")
assert (index.ntotal, held) == (1000, 998), "rows are refused, kept or counted otherwise now"
flat = faiss.IndexFlatL2(16)
flat.add(rows)
kept = bool(np.isnan(flat.reconstruct(5)).all())
print(f"flat index of the same rows: ntotal {flat.ntotal}, reconstruct(5) holds nan: {kept}")
assert kept
index.make_direct_map()
try:
    index.reconstruct(5)
    raise SystemExit("reconstruct gives the dropped row now")
except RuntimeError as error:
    print(f"inverted file: reconstruct(5) raises {type(error).__name__}")
PY
