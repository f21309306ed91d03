from __future__ import annotations

import importlib.util

import pytest
import torch

from fourm_lite.backbone import export
from fourm_lite.errors import ConfigError

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed"
)


@pytest.fixture
def many():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def test_an_exported_program_gives_the_logits_for_any_batch_size(vit, many):
    program = export.export_program(vit).module()

    for images in (many, many[:3]):
        torch.testing.assert_close(program(images), vit(images), rtol=0, atol=1e-5)


@needs_onnx
def test_onnx_gives_the_logits_in_onnxruntime(vit, many, tmp_path):
    run = export.run_onnx(export.export_onnx(vit, tmp_path / "m.onnx"), threads=1)

    with torch.no_grad():
        for images in (many, many[:1]):
            got, want = run(images), vit(images)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
            assert torch.equal(got.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("form", ["bf16", "int8", pytest.param("onnx-int8", marks=needs_onnx)])
def test_cheaper_arithmetic_stays_near(vit, many, tmp_path, form):
    with torch.no_grad():
        got, want = export.make(vit, form, tmp_path)(many), vit(many)

    assert 0 < (got - want).abs().max() < 0.1 * want.abs().max()
    assert vit.encoder_norm.weight.dtype == torch.float32


def test_a_report_measures_each_form(vit, many, tmp_path):
    lines = export.report(vit, many, forms=("export", "int8"), out=tmp_path, repeats=1)

    assert [line.form for line in lines] == ["float32", "export", "int8"]
    assert lines[1].max_difference < 1e-5
    assert all(line.seconds > 0 and line.speedup > 0 for line in lines)
    assert (tmp_path / "model.pt2").is_file()


def test_an_unknown_form_is_refused(vit, many, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        export.report(vit, many, forms=("onx",), out=tmp_path)
