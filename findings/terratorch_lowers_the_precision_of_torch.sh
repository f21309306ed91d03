#!/usr/bin/env bash
# terratorch: importing it lowers the precision of every float32 product in the process.
#
# Behaviour: `import terratorch` calls `torch.set_float32_matmul_precision("medium")` (one of its backbones does so at the top of
#   its file, and the package imports all of them). From then on any float32 matrix product of the process, of whatever
#   library, may be computed in bfloat16: on CPUs with bfloat16 instructions and on GPUs.
# Why a guess is wrong: a global switch of another library's numerics is expected from a trainer's option, not from an
#   import; the dtypes stay float32, nothing is printed, and on a CPU without those instructions nothing changes, so that
#   a comparison passes on a laptop and fails on a server.
# Who meets it: whoever compares TerraMind's or another model's outputs with terratorch in one process, stores embeddings by a
#   script that imports it, or measures speed beside it (the peer's products are then half as wide).
# Instead: torch.set_float32_matmul_precision("highest") after the import, or terratorch in a process of its own.
#
# Seen with terratorch 1.2.13, torch 2.14.1, on a Xeon with AMX:
#   precision before highest, after medium
#   512 x 512 product: largest error before 5.6e-05, after 2.6e-01 (values of size 23)
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.12}" -m venv "$work/env"   # its torchgeo needs Python 3.12
"$work/env/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 terratorch==1.2.13
"$work/env/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch

torch.manual_seed(0)
a, b = torch.randn(512, 512), torch.randn(512, 512)
exact = a.double() @ b.double()


def error():
    return ((a @ b).double() - exact).abs().max().item()


before, error_before = torch.get_float32_matmul_precision(), error()
import terratorch  # noqa: E402, F401

after, error_after = torch.get_float32_matmul_precision(), error()
print("terratorch", version("terratorch"), "torch", version("torch"))
print("precision before", before, "after", after)
print(f"512 x 512 product: largest error before {error_before:.1e}, after {error_after:.1e} (values of size {exact.std():.0f})")
assert (before, after) == ("highest", "medium"), "terratorch leaves the precision as it is"
PY
