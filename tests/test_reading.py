"""Files of others: regular ones alone, counted while they are read, damage told in our words."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_lite.errors import ConfigError, ReadError
from fourm_lite.reading.arrays import open_npz, read_npy, read_npy_file
from fourm_lite.reading.regular import (
    Budget,
    budget,
    check_size,
    lines_of,
    parse_bytes,
    read_bytes,
    read_text,
    set_budget,
    unzipped,
)
from fourm_lite.reading.tars import read_tar


@pytest.fixture
def small():
    """A budget of 64 kB."""
    before = budget()
    set_budget(bytes=1 << 16)
    yield
    set_budget(bytes=before.bytes)


def npz(path, compressed=True, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("form", ["pipe", "link", "folder", "device", "nothing", "nul", "long"])
def test_what_is_no_file_is_never_opened_and_never_waited_for(tmp_path, form):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    places = {"folder": tmp_path, "device": "/dev/zero", "nul": "a\0b", "long": "x" * 5000}
    started = time.monotonic()

    for read in (read_bytes, read_text, check_size, read_npy_file):
        with pytest.raises(ReadError):
            read(places.get(form, tmp_path / form))
    with pytest.raises(ReadError), open_npz(places.get(form, tmp_path / form)):
        pass

    assert time.monotonic() - started < 1


def test_a_sparse_file_is_refused_by_its_place_on_the_disk(tmp_path, small):
    path = tmp_path / "photo.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 33)

    for read in (read_bytes, check_size):
        with pytest.raises(ReadError, match="--max-bytes"):
            read(path)


def test_an_honest_file_larger_than_the_budget_is_read(tmp_path, small):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 18))

    assert len(read_bytes(path)) == 1 << 18
    check_size(path)


def test_a_budget_raised_by_the_user_reads_more(tmp_path, small):
    path = npz(tmp_path / "a.npz", x=np.zeros(1 << 16))
    with open_npz(path) as arrays, pytest.raises(ReadError, match="--max-bytes"):
        arrays["x"]

    set_budget(bytes=1 << 20)

    with open_npz(path) as arrays:
        assert arrays["x"].shape == (1 << 16,)


def test_sizes_are_counted_and_not_believed(tmp_path, small):
    """A member that says 8 bytes and holds a megabyte."""
    path = npz(tmp_path / "a.npz", x=np.zeros(1 << 17))
    data = path.read_bytes()
    true = (128 + (1 << 20)).to_bytes(4, "little")
    assert data.count(true) == 2
    path.write_bytes(data.replace(true, (8).to_bytes(4, "little")))

    with pytest.raises(ReadError), open_npz(path) as arrays:
        arrays["x"]


def test_a_compressed_text_is_counted_too(tmp_path, small):
    import gzip

    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(bytes(1 << 20)))

    with pytest.raises(ReadError, match="--max-bytes"):
        unzipped(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_come_back_as_numpy_wrote_them(tmp_path, compressed):
    arrays = {
        "ids": np.array(["a", "bc"]), "values": np.arange(12.0).reshape(2, 3, 2)[:, ::-1],
        "f": np.asfortranarray(np.ones((3, 2))), "empty": np.empty((0, 4), np.int8),
        "one": np.int64(3), "b": np.array([True, False]),
    }  # fmt: skip

    with open_npz(npz(tmp_path / "a.npz", compressed, **arrays)) as found:
        read = dict(found)
        ids, _ = found.rows("ids", "values")

    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(read[name], array)
        assert read[name].dtype == np.asarray(array).dtype
    assert ids.tolist() == ["a", "bc"]


def test_rows_that_do_not_fit_each_other_are_told(tmp_path):
    path = npz(tmp_path / "a.npz", ids=np.array(["a"]), values=np.zeros((2, 3)), one=np.int64(1))

    with open_npz(path) as arrays:
        for names in (("ids", "values"), ("one",), ("ids", "nothing")):
            with pytest.raises(ReadError):
                arrays.rows(*names)


@pytest.mark.parametrize("compressed", [True, False])
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_a_damaged_archive_gives_arrays_or_our_error(tmp_path_factory, compressed, data):
    place = tmp_path_factory.getbasetemp() / f"damaged-{compressed}.npz"
    whole = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(whole, ids=np.array(["a", "b"]), values=np.arange(8.0).reshape(2, 4))
    raw = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    place.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])

    with contextlib.suppress(ReadError), open_npz(place) as arrays:
        for name in arrays:
            assert isinstance(arrays[name], np.ndarray)
            arrays.stored(name)


@pytest.mark.parametrize(
    "header",
    ["{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "{'shape': (-1,)}", "[" * 5000,
     "{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976,)}",
     "{'descr': '<f8', 'fortran_order': False, 'shape': (-3, -3)}",
     "{'descr': '|V0', 'fortran_order': False, 'shape': (9, 0)}", "__import__('os')"],
)  # fmt: skip
def test_a_header_is_data_and_its_sizes_are_no_truth(header):
    text = header.encode()
    start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")

    with contextlib.suppress(ReadError):
        assert read_npy(start + text).size == 0


def test_a_zip_of_something_else_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("folder/", b"")

    with open_npz(tmp_path / "a.npz") as arrays:
        assert arrays.files == ["x"]
        with pytest.raises(ReadError, match="npy"):
            arrays["x"]


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1e9", "9" * 40, "4 pounds", "0.0000001"])
def test_a_budget_is_a_number_of_bytes(text):
    with pytest.raises(ConfigError, match="number of bytes"):
        parse_bytes(text)


def test_a_budget_knows_its_numbers():
    for wrong in ({"bytes": 0}, {"letters": 3}, {"rows": -1}, {"bytes": 1.5}, {"bytes": True}):
        with pytest.raises(ConfigError):
            set_budget(**wrong)
    assert Budget() == budget()


def tar_of(path, *members, form=""):
    """A tar of (name, bytes) or of headers alone."""
    with tarfile.open(path, f"w:{form}") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def header(name, **fields):
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize("form", ["", "gz", "bz2", "xz"])
def test_a_tar_gives_its_files_and_says_what_it_does_not_give(tmp_path, form):
    path = tar_of(
        tmp_path / "t", ("./a.jpg", b"1"), ("../b.jpg", b"2"), ("c/d.jpg", b"3"),
        header("folder", type=tarfile.DIRTYPE), header("pipe", type=tarfile.FIFOTYPE),
        header("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), ("e.jpg", b""), form=form,
    )  # fmt: skip

    found = list(read_tar(path))

    assert [(m.name, m.data) for m in found if not m.refused] == [
        ("a.jpg", b"1"), ("c/d.jpg", b"3"), ("e.jpg", b""),
    ]  # fmt: skip
    assert [m.name for m in found if m.refused] == ["../b.jpg", "pipe", "link"]


@pytest.mark.parametrize("form", ["", "gz"])
@pytest.mark.parametrize("size", [1 << 40, 1 << 60, 1 << 31])
def test_a_member_that_claims_what_is_not_there_ends_at_once(tmp_path, small, form, size):
    path = tar_of(tmp_path / "t", ("a.jpg", b"1"), header("b.jpg", size=size), form=form)
    started = time.monotonic()

    found = read_tar(path)

    assert next(found).data == b"1"
    with pytest.raises(ReadError, match="cannot be read to its end"):
        next(found)
    assert time.monotonic() - started < 1


def test_a_packed_tar_is_counted_while_it_is_read(tmp_path, small):
    path = tar_of(tmp_path / "t", *((f"{i}.jpg", bytes(1 << 14)) for i in range(200)), form="gz")
    found = []

    with pytest.raises(ReadError, match="--max-bytes"):
        found.extend(read_tar(path))

    assert 0 < len(found) < 200


def test_a_line_that_is_too_long_is_none_and_the_next_is_read(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"a\n" + b"x" * 5000 + b"\n\nb")

    assert list(lines_of(path, most=100)) == [(1, b"a\n"), (2, None), (3, b"\n"), (4, b"b")]
