from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.index.codes import CodeStore, pack, unpack
from fourm_lite.search.index.index import Index

BOOK = np.random.default_rng(5).standard_normal((8192, 32)).astype(np.float32)


def decode(codes):
    """A toy tokenizer: the mean of the codebook vectors, in a different direction by place."""
    signs = np.where(np.arange(codes.shape[1]) % 2, 1.0, -1.0)
    return np.einsum("nte,t->ne", BOOK[codes], signs).astype(np.float32)


def drawn(count, seed=0):
    return np.random.default_rng(seed).integers(0, 8192, (count, 16)).astype(np.uint16)


@pytest.fixture
def make(tmp_path):
    def create(**options):
        return Index.create(
            tmp_path / "codes", space="toy", kind="codes", codebook_size=8192, **options
        )

    return create


@pytest.mark.parametrize("bits", [8, 10, 13, 16])
@pytest.mark.parametrize("num_codes", [1, 3, 16])
def test_packing_is_undone_by_unpacking(bits, num_codes):
    codes = np.random.default_rng(1).integers(0, 1 << bits, (50, num_codes)).astype(np.uint16)

    packed = pack(codes, bits)

    assert packed.shape == (50, -(-num_codes * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, num_codes), codes)


@pytest.mark.parametrize("codebook_size", [None, 2, 300, 8192, 65536])
@pytest.mark.parametrize("packed", [False, True])
def test_codes_return_from_an_arrow_column_and_from_a_slice_of_it(codebook_size, packed):
    codes = np.random.default_rng(2).integers(0, codebook_size or 65536, (20, 5)).astype(np.uint16)
    store = CodeStore(codebook_size, packed=packed)

    column = store.to_arrow(codes)

    np.testing.assert_array_equal(store.from_arrow(column), codes)
    np.testing.assert_array_equal(store.from_arrow(column.slice(3, 4)), codes[3:7])


def test_a_codes_only_search_equals_a_search_over_decoded_vectors(make):
    index, codes = make(decode=decode), drawn(500)
    index.add(np.arange(500), codes=codes, even=np.arange(500) % 2 == 0)
    units = decode(codes) / np.linalg.norm(decode(codes), axis=1, keepdims=True)

    for query in decode(drawn(5, seed=9)):
        scores = units @ (query / np.linalg.norm(query))

        assert index.search(query, k=6).ids == np.argsort(-scores)[:6].tolist()
        scores[1::2] = -9
        assert index.search(query, k=6, where="even").ids == np.argsort(-scores)[:6].tolist()


def test_decoding_streams_in_batches_and_never_sees_the_whole_index(make):
    sizes = []

    def watched(codes):
        sizes.append(len(codes))
        return decode(codes)

    index = make(decode=watched)
    index.add(np.arange(20_000), codes=drawn(20_000))
    index.search(decode(drawn(1))[0])

    assert sum(sizes) == 20_000
    assert max(sizes) <= 8192


def test_an_item_takes_at_most_40_bytes_on_disk_with_its_id_and_hash(make):
    index, count = make(decode=decode), 50_000
    rng = np.random.default_rng(0)
    ids = [f"img{i:06d}" for i in range(count)]
    for start in range(0, count, 10_000):
        part = slice(start, start + 10_000)
        hashes = rng.integers(-(2**63), 2**63 - 1, 10_000)
        index.add(ids[part], codes=drawn(10_000, start), content_hash=hashes)
    index.compact(keep=timedelta(0))

    used = sum(f.stat().st_size for f in Path(index.path).rglob("*") if f.is_file())

    assert used / count <= 40
    assert len(index) == count


def test_codes_and_vectors_can_be_read_back_by_id(make):
    index, codes = make(decode=decode), drawn(10)
    index.add(np.arange(10), codes=codes)

    hits = index.search(decode(codes[4:5])[0], k=1, columns=["codes"])

    assert hits.ids == [4]
    np.testing.assert_array_equal(hits.columns["codes"][0], codes[4])
    units = decode(codes[[3, 1]])
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    np.testing.assert_allclose(index.vectors([3, 1]), units, atol=1e-6)


def test_an_index_of_vectors_keeps_codes_as_a_list_of_uint16(tmp_path):
    index = Index.create(tmp_path / "both", space="toy")
    codes = drawn(4)
    index.add(np.arange(4), decode(codes), codes=codes)

    column = index.get([2, 0], ["codes"])["codes"]

    assert str(column.type) == "fixed_size_list<item: uint16>[16]"
    assert column.to_pylist() == codes[[2, 0]].tolist()


def test_what_does_not_fit_a_codes_only_index_is_refused(make):
    index = make()
    index.add([1], codes=drawn(1))

    with pytest.raises(ConfigError, match="takes codes= and no vectors"):
        index.add([2], np.ones((1, 32)))
    with pytest.raises(ConfigError, match=r"0\.\.8191"):
        index.add([2], codes=np.full((1, 16), 8192))
    with pytest.raises(ShapeError, match="whole numbers"):
        index.add([2], codes=np.ones((1, 16)))
    with pytest.raises(ConfigError, match="decode="):
        index.search(np.ones(32))
    with pytest.raises(ConfigError, match="no ann index"):
        index.build_ann()


def test_rows_of_another_number_of_codes_are_refused(make):
    index = make(decode=decode)
    index.add([1], codes=drawn(1))

    with pytest.raises(ConfigError, match="'codes' is"):
        index.add([2], codes=drawn(1)[:, :8])
