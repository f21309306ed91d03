import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_pipeline import photo

from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.spaces import open_space
from fourm_lite.search.vectors import VectorSearch, open_vectors
from fourm_lite.unit import unit

from .conftest import network

NAMES = [f"photo {i}" for i in range(9)]


@pytest.fixture(scope="module")
def raw():
    return load_embedder(network).embed_image([photo(i) for i in range(9)], normalize=False)


def write_npy(path, raw):
    np.save(path / "v.npy", raw)
    (path / "ids.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return path / "v.npy", {"ids": path / "ids.txt"}


def write_npz(path, raw):
    np.savez(path / "v.npz", embeddings=raw, ids=NAMES, urls=[n + ".jpg" for n in NAMES])
    return path / "v.npz", {}


def write_safetensors(path, raw):
    save_file({"vectors": raw, "extra": np.zeros((9, 2), np.float32)}, path / "v.safetensors")
    (path / "ids.json").write_text(json.dumps(NAMES), encoding="utf-8")
    return path / "v.safetensors", {"ids": path / "ids.json"}


def write_parquet(path, raw):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"id": NAMES, "emb": [list(map(float, r)) for r in raw], "n": range(9)})
    parquet.write_table(table, path / "v.parquet")
    return path / "v.parquet", {}


def write_lance(path, raw):
    import lance
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(raw.reshape(-1)), raw.shape[1])
    table = pa.table({"id": pa.array(NAMES), "vector": column})
    lance.write_dataset(table, path / "mine.lance")
    return path / "mine.lance", {}


def write_faiss(path, raw):
    faiss = pytest.importorskip("faiss", reason="the extra [faiss] is not installed")
    index = faiss.IndexFlatIP(raw.shape[1])
    index.add(raw)
    faiss.write_index(index, str(path / "v.faiss"))
    (path / "ids.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return path / "v.faiss", {"ids": path / "ids.txt"}


WRITERS = [write_npy, write_npz, write_safetensors, write_parquet, write_lance, write_faiss]


def digest(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_of_any_format_is_searched_and_left_as_it_was(tmp_path, space, raw, write):
    path, options = write(tmp_path, raw)
    before = digest(path)

    search = VectorSearch.of(open_vectors(path, **options), space)
    hits = search(caption="a red circle", k=4)

    assert digest(path) == before
    centred = raw - raw.mean(axis=0)
    query = space.raw_queries([{"caption": "a red circle"}])[0, 0] - raw.mean(axis=0)
    scores = unit(centred) @ unit(query)
    order = np.argsort(-scores, kind="stable")[:4]
    assert hits.ids == [NAMES[i] for i in order]
    assert np.allclose(hits.scores, scores[order], atol=1e-5)
    assert search.info["centre"] == "gallery"


@pytest.mark.parametrize("recipe", ["Flat", "IVF2,Flat", "HNSW4,Flat", "L2norm,IVF2,Flat"])
def test_a_faiss_index_of_any_kind_gives_its_vectors_and_ids_back(tmp_path, raw, recipe):
    faiss = pytest.importorskip("faiss", reason="the extra [faiss] is not installed")
    plain = faiss.index_factory(raw.shape[1], recipe)
    plain.train(raw)
    named = faiss.IndexIDMap(plain)
    named.add_with_ids(raw, np.arange(100, 100 + len(raw)))
    faiss.write_index(named, str(tmp_path / "named.index"))

    found = open_vectors(tmp_path / "named.index")

    expected = unit(raw) if "L2norm" in recipe else raw
    assert found.ids == list(range(100, 100 + len(raw)))
    assert np.allclose(found.rows(0), expected, atol=1e-5)


def test_a_faiss_file_that_is_none_says_so(tmp_path):
    pytest.importorskip("faiss", reason="the extra [faiss] is not installed")
    (tmp_path / "broken.faiss").write_bytes(b"not an index")

    with pytest.raises(ConfigError, match="faiss cannot give its vectors back"):
        open_vectors(tmp_path / "broken.faiss")


def test_columns_beside_the_vectors_come_with_the_hits(tmp_path, space, raw):
    path, _ = write_npz(tmp_path, raw)

    hits = VectorSearch.of(open_vectors(path), space)(caption="two dogs", k=2)

    assert hits.columns["urls"] == [f"{i}.jpg" for i in hits.ids]


def test_without_centring_scores_are_plain_cosines(tmp_path, pipe, raw):
    path, options = write_npy(tmp_path, raw)
    plain = open_space(pipe, center=False)

    hits = VectorSearch.of(open_vectors(path, **options), plain)({"caption": "two dogs"}, k=9)

    scores = unit(raw) @ plain.encode_query([{"caption": "two dogs"}])[0]
    assert np.allclose(np.sort(hits.scores), np.sort(scores), atol=1e-5)


@pytest.mark.parametrize("row", [0, 7])
@pytest.mark.parametrize("length", [0.3, 40.0])
def test_a_row_of_another_length_among_unit_vectors_changes_no_score(
    tmp_path, space, raw, row, length
):
    vectors = unit(raw)
    np.save(tmp_path / "plain.npy", vectors)
    vectors[row] *= length
    np.save(tmp_path / "odd.npy", vectors)
    np.save(tmp_path / "eighths.npy", np.round(unit(raw) * 127) / 127)

    plain, odd, rounded = (
        VectorSearch.of(open_vectors(tmp_path / name), space)(caption="two dogs", k=9)
        for name in ("plain.npy", "odd.npy", "eighths.npy")
    )

    assert odd.ids == plain.ids
    assert np.allclose(odd.scores, plain.scores, atol=1e-5)
    assert np.allclose(np.sort(rounded.scores), np.sort(plain.scores), atol=0.03)


def test_a_zero_vector_is_refused_by_its_row_as_an_index_refuses_it(tmp_path, space, raw):
    for name, vectors in {"unit.npy": unit(raw), "raw.npy": raw.copy()}.items():
        vectors[6] = 0
        np.save(tmp_path / name, vectors)

        with pytest.raises(ConfigError, match=rf"{name}: vector 6 is zero"):
            VectorSearch.of(open_vectors(tmp_path / name), space)


def test_vectors_of_another_width_are_another_space(tmp_path, space):
    np.save(tmp_path / "v.npy", np.ones((3, 7), np.float32))

    with pytest.raises(ShapeError, match=r"width 7.*'tok_vector_global' is of width 10"):
        VectorSearch.of(open_vectors(tmp_path / "v.npy"), space)


def test_bad_files_say_what_is_wrong(tmp_path, raw):
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=raw, b=raw)
    np.save(tmp_path / "nan.npy", np.full((2, 3), np.nan, np.float32))
    np.save(tmp_path / "v.npy", raw)
    (tmp_path / "few.txt").write_text("one\n", encoding="utf-8")
    for name, said in {
        "broken.npy": "cannot be read",
        "pickled.npy": "cannot be read",
        "two.npz": "say which with key=",
        "gone.npy": "there is no file",
        "v.csv": "vectors are read from",
    }.items():
        with pytest.raises(ConfigError, match=said):
            open_vectors(tmp_path / name)
    with pytest.raises(ConfigError, match="vector 0 is not finite"):
        open_vectors(tmp_path / "nan.npy").rows(0)
    with pytest.raises(ShapeError, match="9 vectors, there are 1 ids"):
        open_vectors(tmp_path / "v.npy", ids=tmp_path / "few.txt")
    assert open_vectors(tmp_path / "two.npz", key="b").width == 10


def test_an_array_in_place_of_a_file_or_a_question_is_told_where_it_belongs(tmp_path, raw, space):
    with pytest.raises(ConfigError, match=r"open_vectors\('NAME.npy'\).*got ndarray.*numpy.save"):
        VectorSearch.of(raw, space)

    place, more = write_npy(tmp_path, raw)
    search = VectorSearch.of(open_vectors(place, **more), space)
    with pytest.raises(ConfigError, match=r"Index.open\('IDX'\).search\(vector\)"):
        search(raw[0])
