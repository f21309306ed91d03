"""`torchrun -m fourm_lite train` on two processes, as docs/multi-gpu.md writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
batch_size = 2

[tokenizer]
image_size = 8
patch_size = 4
n_channels = 3
codebook_size = 16
latent_dim = 8
enc_type = "vit_16x1x2_enc"
dec_type = "vit_16x1x2_dec"

[values]
form = "photos"
captions = "list.jsonl"
start_count = 0

[train]
steps = 3
log_every = 1
out = "run"
"""


@pytest.mark.slow
def test_two_processes_train_one_model_and_one_of_them_speaks(tmp_path):
    rows = []
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        row = {"id": str(number), "file": f"{number}.png", "captions": [], "split": "train"}
        rows.append(json.dumps(row) + "\n")
    (tmp_path / "list.jsonl").write_text("".join(rows))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["ACCELERATE_USE_CPU"] = "true"
    words = ["--standalone", "--nproc-per-node", "2", "-m", "fourm_lite"]

    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, "train", "recipe.toml"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("finished") == 1
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [step["samples"] for step in steps] == [4, 8, 12]
