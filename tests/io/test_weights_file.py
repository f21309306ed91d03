import pytest
import torch

from fourm_lite.errors import CheckpointError
from fourm_lite.io.weights_file import TensorInfo, WeightsFile

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(8)


def entry(**changes):
    return {"x": {**F32, **changes}}


def test_a_header_tells_names_shapes_types_and_metadata(raw_file):
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]},
        "a": F32,
    }

    found = WeightsFile(raw_file(header, bytes(16)))

    assert found.tensors == {"a": TensorInfo((2,), "F32"), "b": TensorInfo((), "I64")}
    assert found.metadata == {"format": "pt"}


def test_a_header_may_be_padded_with_spaces(raw_file):
    assert WeightsFile(raw_file(b'{"__metadata__": {}}   ')).tensors == {}


def test_an_empty_tensor_takes_no_bytes(raw_file):
    path = raw_file(entry(shape=[0, 1_000_000_000], data_offsets=[0, 0]))

    assert WeightsFile(path).tensors["x"].num_bytes == 0


BAD = {
    "a billion elements": (entry(shape=[10**9]), EIGHT, "shape"),
    "a billion elements and their range": (
        entry(shape=[10**9], data_offsets=[0, 4 * 10**9]), EIGHT, "not fully covered"),
    "sizes that overflow 64 bits": (entry(shape=[2**40, 2**40]), EIGHT, "overflow"),
    "a size beyond 64 bits": (entry(shape=[10**30]), EIGHT, "1e\\+30"),
    "a negative size": (entry(shape=[-2]), EIGHT, "-2"),
    "a size that is true": (entry(shape=[True]), EIGHT, "true"),
    "a size that is text": (entry(shape=["2"]), EIGHT, "string"),
    "a rank of a thousand": (
        entry(shape=[1] * 999 + [2]), EIGHT, "'x' should have at most 16 dimensions"),
    "an unknown type": (entry(dtype="F99"), EIGHT, "F99"),
    "a type of half bytes": (entry(dtype="F4", shape=[16]), EIGHT, "'x' has the type F4"),
    "a type that is a list": (entry(dtype=["F32"]), EIGHT, "sequence"),
    "another type than the range": (entry(dtype="F64"), EIGHT, "data type"),
    "a missing field": ({"x": {"dtype": "F32", "shape": [2]}}, EIGHT, "data_offsets"),
    "an entry that is no object": ({"x": 3}, EIGHT, "integer"),
    "three offsets": (entry(data_offsets=[0, 8, 8]), EIGHT, "length 3"),
    "an inverted range": (entry(data_offsets=[8, 0]), EIGHT, "`x`"),
    "a hole at the start": (entry(data_offsets=[4, 12]), bytes(12), "`x`"),
    "an overlap": ({"x": F32, "y": F32}, EIGHT, "invalid offset"),
    "bytes of nobody": (entry(), bytes(9), "not fully covered"),
    "too few bytes": (entry(), bytes(7), "not fully covered"),
    "metadata that is a list": ({"__metadata__": []}, b"", "a map"),
    "metadata with a number": ({"__metadata__": {"a": 1}}, b"", "a string"),
    "a header that is a list": ([], b"", "sequence"),
}  # fmt: skip


@pytest.mark.parametrize(("header", "data", "message"), BAD.values(), ids=BAD.keys())
def test_a_wrong_header_is_told(raw_file, header, data, message):
    with pytest.raises(CheckpointError, match=message):
        WeightsFile(raw_file(header, data))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 1 << 20])
def test_an_absurd_header_length_is_told_and_nothing_is_allocated(raw_file, length):
    with pytest.raises(CheckpointError, match=r"truncated|claims a header"):
        WeightsFile(raw_file({"x": F32}, EIGHT, length=length))


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04rest of a zip", b"\x80\x02rest"])
def test_what_is_no_safetensors_file_is_told(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match="should be a safetensors file"):
        WeightsFile(path)


def test_every_truncation_of_a_file_is_told(raw_file, raw):
    whole = raw({"__metadata__": {"format": "pt"}, "x": F32}, EIGHT)
    path = raw_file({})

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            WeightsFile(path)


def test_a_folder_and_a_missing_file_are_told(tmp_path):
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(CheckpointError, match="cannot read"):
            WeightsFile(path)


def test_tensors_come_in_the_order_of_the_file_whatever_the_order_of_the_question(tmp_path):
    from safetensors.torch import save_file

    names = [f"layer.{i}" for i in range(40)]
    save_file(
        {name: torch.zeros(i + 1) for i, name in enumerate(names)}, tmp_path / "w.safetensors"
    )
    file = WeightsFile(tmp_path / "w.safetensors")

    assert list(file.load(set(names))) == list(file.tensors)
