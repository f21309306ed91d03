"""An FMViT for other runtimes and cheaper arithmetic, each compared with the model it came from.

`torch.export` and ONNX without TorchScript, `torch.compile`, bfloat16, and int8 weights on the CPU.
Unusual: `report` measures; nothing here is assumed to be faster. Reads pixels only.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.backbone.int8 import quantized
from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import FourMError, check_choice
from fourm_lite.io.files import replacing
from fourm_lite.io.onnx_files import open_session
from fourm_lite.progress import Progress

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Agreement:
    """How an exported model compares with the original on the same images.

    Units:
        max_difference: of logits; top1: share of images with the same first class; without
            classes of features, and with the same largest one
        seconds: a batch, the best of several runs; speedup: the original's seconds over these
    """

    form: str
    max_difference: float
    top1: float
    seconds: float
    speedup: float


def export_program(model: FMViT, *, batch: int = 2, dynamic: bool = True) -> Any:
    """The model as a `torch.export.ExportedProgram`; with `dynamic` for any batch size."""
    shapes = {"x": {0: torch.export.Dim("batch")}} if dynamic else None
    with _quiet(), torch.no_grad():
        return torch.export.export(
            _Pixels(model.eval()), (_example(model, max(batch, 2)),), dynamic_shapes=shapes
        )


def export_onnx(model: FMViT, path: str | Path) -> Path:
    """Writes the model as ONNX for any batch size, by the exporter without TorchScript.

    Raises:
        FourMError: onnx or onnxscript is not installed
    """
    target = Path(path)
    try:
        with replacing(target) as draft, _quiet(), torch.no_grad():
            torch.onnx.export(
                _Pixels(model.eval()), (_example(model, 2),), draft, dynamo=True, verbose=False,
                input_names=["pixels"], output_names=[output_name(model)], external_data=False,
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            )  # fmt: skip
    except ImportError as error:
        raise FourMError(
            f"ONNX needs the packages onnx and onnxscript ({error}); pip install onnx onnxscript"
        ) from error
    return target


def output_name(model: FMViT) -> str:
    """What a model gives: "logits", or "features" without classes."""
    return "logits" if model.num_classes else "features"


def run_onnx(path: str | Path, *, threads: int = 0) -> Run:
    """A function of images that onnxruntime computes; 0 threads leaves the choice to it."""
    session = open_session(Path(path), threads=threads)
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.float().numpy()})[0])

    return run


def quantize_onnx(path: str | Path, out: str | Path) -> Path:
    """An ONNX file whose matrix products have int8 weights and inputs scaled as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = onnx.load(str(path))
    del plain.graph.value_info[:]  # the exporter's shapes of folded weights contradict onnx's own
    with replacing(out) as draft, _quiet():
        quantize_dynamic(
            plain, str(draft), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip
    return Path(out)


def compiled(model: FMViT) -> Run:
    """The model by `torch.compile`; the first call compiles."""
    run: Run = torch.compile(model.eval(), dynamic=False)
    return run


def in_bfloat16(model: FMViT) -> Run:
    """The model with bfloat16 weights; logits come back in float32."""
    half = copy.deepcopy(model).eval().to(torch.bfloat16)
    return lambda x: half(x.to(torch.bfloat16)).float()


FORMS = ("export", "onnx", "onnx-int8", "compile", "bf16", "int8")
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_NEEDS = {"onnx": _ONNX, "onnx-int8": _ONNX}


def missing_packages(form: str) -> list[str]:
    """What a form needs and is not installed."""
    return [name for name in _NEEDS.get(form, ()) if find_spec(name) is None]


def report(
    model: FMViT,
    images: Tensor,
    *,
    forms: Sequence[str] = FORMS,
    out: Path,
    batch: int = 8,
    repeats: int = 3,
    ranges_from: Tensor | None = None,
    progress: Progress | None = None,
) -> list[Agreement]:
    """Makes the named forms, writes their files to `out`, and measures them on images.

    Shapes:
        images: float[B, C, H, W]; all are compared, the first `batch` are timed
        ranges_from: float[n, C, H, W], other images, for int8; without them it is slower
    Args:
        progress: told how many forms are done

    Raises:
        ConfigError: a form that is not known
        FourMError: a form needs a package that is not installed; before any work
    """
    check_choice("a form", *forms, of=FORMS)
    for form in forms:
        if missing := missing_packages(form):
            raise FourMError(
                f"the form {form} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
            )
    model.eval()
    want, base = _measured(model, images, batch, repeats)
    lines = [Agreement("float32", 0.0, 1.0, base, 1.0)]
    for number, form in enumerate(forms, 1):
        run = make(model, form, out, ranges_from=ranges_from)
        got, seconds = _measured(run, images, batch, repeats)
        top1 = float((got.argmax(-1) == want.argmax(-1)).float().mean())
        difference = float((got - want).abs().max())
        lines.append(Agreement(form, difference, top1, seconds, base / seconds))
        if progress is not None:
            progress(number, len(forms))
    return lines


@torch.inference_mode()
def _measured(run: Run, images: Tensor, batch: int, repeats: int) -> tuple[Tensor, float]:
    """The logits of all images, and the seconds of one batch."""
    logits = torch.cat([run(part) for part in images.split(batch)])
    return logits, seconds_of(run, images[:batch], repeats)


def make(model: FMViT, form: str, out: Path, *, ranges_from: Tensor | None = None) -> Run:
    """One form as a function of images, its file (if it has one) under `out`."""
    if form == "export":
        program = export_program(model)
        with replacing(out / "model.pt2") as draft, draft.open("wb") as file:
            torch.export.save(program, file)
        return program.module()
    if form.startswith("onnx"):
        path = export_onnx(model, out / "model.onnx")
        if form == "onnx-int8":
            path = quantize_onnx(path, out / "model.int8.onnx")
        return run_onnx(path, threads=torch.get_num_threads())
    plain: dict[str, Callable[[FMViT], Run]] = {
        "compile": compiled,
        "bf16": in_bfloat16,
        "int8": lambda vit: quantized(vit, ranges_from),
    }
    return plain[form](model)


def seconds_of(run: Run, images: Tensor, repeats: int) -> float:
    """The shortest of several calls, after one to warm up."""
    run(images)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return min(times)


class _Pixels(nn.Module):
    """The path of images alone, under one argument name."""

    def __init__(self, model: FMViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _example(model: FMViT, batch: int) -> Tensor:
    return torch.zeros(batch, *model.input_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn about their own deprecations, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
