"""What `import fourm_lite` costs and loads, and that no name of ours hides another package.

Each question is asked in a fresh interpreter, started where it matters.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fourm_lite

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "PIL",
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "lance",
    "onnxruntime",
    "pyarrow",
    "sklearn",
    "timm",
    "tokenizers",
    "torchvision",
    "transformers",
}


# a checkpoint saved, loaded and asked, with nothing but what the core needs
JOURNEY = """
import sys, tempfile, torch
import fourm_lite as fl

rgb, depth = fl.MODALITIES["rgb@224"], fl.MODALITIES["tok_depth@224"]
small = dict(dim=32, encoder_depth=1, decoder_depth=1, num_heads=2)
config = fl.FourMConfig(inputs=(rgb,), outputs=(depth,), **small)
with tempfile.TemporaryDirectory() as folder:
    fl.FourM(config).init_weights().save(folder)
    model = fl.load_model(folder)
pixels = fl.Tokens.given(torch.zeros(1, 3, 224, 224), length=rgb.max_tokens)
batch = fl.TokenBatch({rgb.name: pixels, depth.name: fl.Tokens.wanted(depth, 1)})
print(list(model(batch, 196, 196)[depth.name].logits.shape), "torchvision" in sys.modules)
"""


def run_python(code: str, *, first_on_path: Path | None = None) -> str:
    """Standard output of `code`, run in the repository root."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if first_on_path is not None:
        env["PYTHONPATH"] = str(first_on_path)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_loads_no_heavy_package():
    loaded = run_python("import sys, fourm_lite; print(*sys.modules)").split()

    assert "fourm_lite" in loaded
    assert not HEAVY & set(loaded)


def test_the_face_offers_every_name_it_lists_and_loads_no_heavy_package():
    code = (
        "import sys, fourm_lite\n"
        "for name in fourm_lite.__all__: getattr(fourm_lite, name)\n"
        "print(*sys.modules)"
    )

    loaded = run_python(code).split()

    assert "torch" in loaded
    assert not HEAVY & set(loaded)


def test_the_import_costs_less_than_a_second_beyond_torch():
    # processor time, not wall time, and the best of three: a busy machine cannot fail this
    code = (
        "import time, torch\n"
        "start = time.process_time()\n"
        "import fourm_lite\n"
        "print(time.process_time() - start)"
    )

    assert any(float(run_python(code)) < 1.0 for _ in range(3))


@pytest.fixture
def broken_torchvision(tmp_path):
    """A folder whose torchvision cannot be imported, as with a build for another torch."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    return tmp_path


def test_a_broken_torchvision_changes_nothing(broken_torchvision):
    out = run_python(JOURNEY, first_on_path=broken_torchvision)

    assert out == f"[196, {fourm_lite.MODALITIES['tok_depth@224'].vocab_size}] False\n"


def test_the_broken_torchvision_of_these_tests_is_the_one_that_is_found(broken_torchvision):
    code = "import importlib.util as u; print(u.find_spec('torchvision').origin)"

    where = run_python(code, first_on_path=broken_torchvision).strip()

    assert Path(where).is_relative_to(broken_torchvision)


# `tokenizers` is a folder of our root: it must not take the place of Hugging Face's package
USE_TRANSFORMERS = (
    "import transformers, tokenizers\n"
    "from transformers import PreTrainedTokenizerFast\n"
    "assert 'site-packages' in tokenizers.__file__, tokenizers.__file__\n"
    "assert tokenizers.Tokenizer.__module__.split('.')[0] == 'tokenizers'\n"
    "print('fine')"
)


def test_transformers_loads_from_the_repository_root():
    assert run_python(USE_TRANSFORMERS).split() == ["fine"]


@pytest.mark.parametrize("folder", ["fourm_lite", "fourm_lite/tokenization"])
def test_transformers_loads_from_a_script_inside_the_package(folder):
    # Python puts the folder of a script first on its path; so does this, without leaving a script
    script_folder = str(ROOT / folder)

    out = run_python(f"import sys\nsys.path[0] = {script_folder!r}\n{USE_TRANSFORMERS}")

    assert out.split() == ["fine"]


WITHOUT_TORCH = """
import sys, tempfile
import numpy as np
from fourm_lite.cli import main
from fourm_lite.search.index.index import Index

place = tempfile.mkdtemp() + "/idx"
Index.create(place, space="toy").add(["a", "b"], np.eye(2))
for words in (["search", place, "--like", "a", "--json"], ["index", "info", place]):
    try:
        main(words)
    except SystemExit as stopped:
        assert stopped.code == 0
print("torch" in sys.modules)
"""


def test_a_search_by_a_row_and_facts_of_an_index_need_no_torch():
    assert run_python(WITHOUT_TORCH).splitlines()[-1] == "False"
