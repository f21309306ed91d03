import subprocess
import sys

import pytest
import torch

from fourm_lite.nn.device import without_storage


@pytest.mark.parametrize(
    "drawn",
    [
        "torch.randn(2, 3)",
        "torch.rand((2, 3))",
        "torch.randn(2, 3, generator=None)",
        "torch.empty(2, 3).normal_(std=0.02)",
        "torch.empty(2, 3).uniform_(-1, 1)",
    ],
)
def test_what_draws_numbers_has_a_shape_and_no_values(drawn):
    with without_storage():
        made = eval(drawn)
    assert made.is_meta
    assert tuple(made.shape) == (2, 3)
    assert torch.randn(2).device.type == "cpu"


def test_a_tokenizer_without_storage_imports_no_compiler():
    code = (
        "import sys; from fourm_lite.nn.device import without_storage; import torch\n"
        "with without_storage(): torch.randn(2, 3), torch.empty(2).normal_()\n"
        "assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
