"""Tensors inside an ONNX file as outputs: a file of two nodes, written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fourm_lite.data.labellers import Cuts, onnx_teachers
from fourm_lite.errors import ConfigError
from fourm_lite.io.onnx_files import message_field, with_outputs

pytest.importorskip("onnxruntime")


def _varint_field(number, value):
    return bytes([number << 3, value])


def _node(op, source, result):
    return message_field(
        1, message_field(1, source) + message_field(2, result) + message_field(4, op)
    )


def _tensor(number, name):
    """A ValueInfoProto float[B, 3, 4, 4], of a graph's inputs (11) or outputs (12)."""
    size = [
        message_field(1, message_field(2, b"B")),
        *(message_field(1, _varint_field(1, n)) for n in (3, 4, 4)),
    ]
    kind = message_field(1, _varint_field(1, 1) + message_field(2, b"".join(size)))
    return message_field(number, message_field(1, name) + message_field(2, kind))


@pytest.fixture
def file(tmp_path):
    """pixels -> Neg -> below -> Exp -> out."""
    graph = _node(b"Neg", b"pixels", b"below") + _node(b"Exp", b"below", b"out")
    graph += message_field(2, b"g") + _tensor(11, b"pixels") + _tensor(12, b"out")
    opset = message_field(8, _varint_field(2, 13))
    path = tmp_path / "net.onnx"
    path.write_bytes(_varint_field(1, 8) + opset + message_field(7, graph))
    return path


def test_a_tensor_inside_is_labelled_like_an_output(file):
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(1, 2, 4, 4, 3)

    (teacher,) = onnx_teachers([f"o={file}#out", f"inner={file}#below"], size=4)
    made = teacher(Cuts([], [], [], pixels))

    x = pixels.transpose(0, 1, 4, 2, 3) / np.float32(255)
    assert made["inner"].shape == (1, 2, 3, 4, 4)
    assert made["inner"].dtype == np.float16
    np.testing.assert_allclose(made["inner"], -x, atol=1e-3)
    np.testing.assert_allclose(made["o"], np.exp(-x), atol=1e-3)


def test_a_name_that_is_nowhere_is_refused_with_what_there_is(file):
    with pytest.raises(ConfigError, match=r"'ut', nor floats .* Did you mean 'out'\?"):
        onnx_teachers([f"o={file}#ut"])


def test_long_names_keep_their_length():
    name = "a" * 300

    added = with_outputs(b"", [name])

    assert added.count(name.encode()) == 1
    assert added[:3] == bytes([7 << 3 | 2, 0xB8, 0x02])  # 312 bytes of a graph
    assert len(added) == 315
