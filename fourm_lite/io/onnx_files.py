"""How ONNX files are opened, wherever one is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourm_lite.reading.regular import read_bytes


def fold_weights(options: Any, path: Path) -> None:
    """Lets onnxruntime turn weights kept as int8 into floats once, instead of in every call.

    By default it leaves a DequantizeLinear node where it stands, even on a constant, and then uses
    its slower convolutions: MobileNetV2 with int8 weights takes twice as long. A file that
    quantizes activations too is left alone, since it has integer kernels to gain.

    Units:
        options: onnxruntime.SessionOptions, changed in place
    """
    if b"QuantizeLinear" not in read_bytes(path):  # the name of the other ends in "quantizeLinear"
        options.add_session_config_entry("session.disable_quant_qdq", "1")


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """An ONNX file that gives further tensors of its graph, all of floats, after its own outputs.

    The names are not looked for: onnxruntime refuses a name that the graph does not have.

    Source:
        onnx.proto: ModelProto.graph is field 7, GraphProto.output field 12, of ValueInfoProto (name
        1, type 2). Protocol Buffers, Encoding: a message that follows another is merged into it
    """
    floats = message_field(
        2, message_field(1, b"\x08\x01")
    )  # type { tensor_type { elem_type: FLOAT } }
    outputs = (message_field(12, message_field(1, name.encode()) + floats) for name in names)
    return model + message_field(7, b"".join(outputs))


def message_field(number: int, content: bytes) -> bytes:
    """A field of Protocol Buffers that holds bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
