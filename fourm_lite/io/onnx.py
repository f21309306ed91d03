"""How ONNX files are opened, wherever one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def fold_weights(options: Any, path: Path) -> None:
    """Lets onnxruntime turn weights kept as int8 into floats once, instead of in every call.

    By default it leaves a DequantizeLinear node where it stands, even on a constant, and then uses
    its slower convolutions: MobileNetV2 with int8 weights takes twice as long. A file that
    quantizes activations too is left alone, since it has integer kernels to gain.

    Units:
        options: onnxruntime.SessionOptions, changed in place
    """
    if b"QuantizeLinear" not in path.read_bytes():  # the name of the other ends in "quantizeLinear"
        options.add_session_config_entry("session.disable_quant_qdq", "1")
