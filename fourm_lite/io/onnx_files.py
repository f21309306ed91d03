"""How ONNX files are opened, wherever one is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourm_lite.errors import CheckpointError, ConfigError, FourMError, foreign_errors, suggest
from fourm_lite.reading.regular import read_bytes

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(
    path: Path,
    *,
    device: str = "cpu",
    threads: int = 0,
    outputs: Sequence[str] = (),
    fold: bool = True,
) -> Any:
    """An onnxruntime session over a file.

    Args:
        path: the file
        device: "cpu" or "cuda"
        threads: 0 leaves the number to onnxruntime
        outputs: names that are asked for; those that the file does not give are looked for inside
            its graph
        fold: whether int8 weights become floats once (see `fold_weights`)

    Raises:
        FourMError: onnxruntime is not installed
        CheckpointError: there is no such file, or it is no ONNX file
        ConfigError: no such device, or no output and no tensor of floats of a name
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise FourMError(f"{path} needs onnxruntime: pip install onnxruntime") from error
    if not Path(path).is_file():
        raise CheckpointError(f"expected an ONNX file, '{path}' does not exist")
    provider, offered = (
        PROVIDERS.get(device.partition(":")[0]),
        onnxruntime.get_available_providers(),
    )
    if provider not in offered:
        raise ConfigError(
            f"device is 'cpu' or 'cuda', and this onnxruntime offers {offered}; got '{device}'"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if fold:
        fold_weights(options, Path(path))
    with foreign_errors(CheckpointError, f"'{path}' cannot be read as ONNX: {{error}}"):
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    known = [output.name for output in session.get_outputs()]
    inner = [name for name in outputs if name not in known]
    if not inner:
        return session
    told = (
        f"{path} has no output {inner[0]!r}, nor floats of that name inside."
        f"{suggest(inner[0], known)} Its outputs: {', '.join(known)}"
    )
    with foreign_errors(ConfigError, told):
        model = with_outputs(read_bytes(path), inner)
        return onnxruntime.InferenceSession(model, options, providers=[provider])


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
    # type { tensor_type { elem_type: FLOAT } }
    floats = message_field(2, message_field(1, b"\x08\x01"))
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
