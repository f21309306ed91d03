"""Opening a model of 4M-21_B's size (3.37 GB) for search, and its first caption query.

    python tests/benchmarks/bench_published.py [--folder DIR] [--base COMMIT] [--rounds 5]

Weights are random; they are written to a temporary folder (its parent is --folder) that is deleted
at the end. Beside this build runs another one (--base, a worktree made for the run). Every figure
is of a fresh process on one thread, in CPU seconds; builds take turns, and the best of all rounds
counts. What is compared with what:

- *opening*: CPU time of the process until the space is open, beside that of a process that only
  imports the same modules;
- *first query*: beside one forward pass (the best later query of the process) and one reading of
  the tensors that it uses (each summed once, freshly mapped);
- *peak memory*: beside that of a process that imports torch alone, and the bytes of these tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BASE = "249b6e1"
TARGET = "tok_dinov2_global"
USED = (
    "encoder.", "encoder_norm.", "encoder_embeddings.caption.", "decoder.", "decoder_norm.",
    "decoder_proj_context.", "mask_token", f"decoder_embeddings.{TARGET}.",
)  # fmt: skip
USED_OF_TOKENIZER = ("quantize.", "post_quant_proj.", "decoder.")
MLP = "BottleneckMLP/B_6-Wi_1024"
TOKENIZER = {
    "n_channels": 768, "enc_type": MLP, "dec_type": MLP, "post_mlp": False, "patch_proj": False,
    "quant_type": "memcodes", "codebook_size": 8192, "num_codebooks": 16, "latent_dim": 1024,
    "image_size": 224, "patch_size": 14,
}  # fmt: skip
LIMITS = {"opening": 1.2, "first query": 1.3, "peak memory": 1.1}

PEAK = """
import json, re, sys, time
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
"""
SEARCH = (
    PEAK
    + """
place = sys.argv[1]
from fourm_lite import open_space
named = {"dinov2_global": place + "/tokenizer", "text": place + "/text.json"}
space = open_space(place + "/model", target="tok_dinov2_global", tokenizers=named)
opened, modules, seconds = time.process_time(), list(sys.modules), []
for _ in range(4):
    start = time.process_time()
    space.encode_query([{"caption": "a dog runs on the beach"}])
    seconds.append(time.process_time() - start)
print(json.dumps({"opened": opened, "first": seconds[0], "later": min(seconds[1:]),
                  "peak": peak(), "modules": modules}))
"""
)
IMPORTS = (
    PEAK
    + """
import importlib, contextlib
for name in json.loads(sys.stdin.read()):
    if name != "__main__":
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
print(json.dumps({"imports": time.process_time()}))
"""
)
TORCH = (
    PEAK
    + """
import torch
print(json.dumps({"torch": peak()}))
"""
)
READING = (
    PEAK
    + """
place, used = sys.argv[1], json.loads(sys.argv[2])
from fourm_lite.io.checkpoint import read
files = {part: read(f"{place}/{part}") for part in used}
names = {p: [n for n in f.tensors if n.startswith(tuple(used[p]))] for p, f in files.items()}
start = time.process_time()
tensors = [t for part, file in files.items() for t in file.load(names[part]).values()]
total = sum(float(value.sum()) for value in tensors)
seconds = time.process_time() - start
print(json.dumps({"reading": seconds, "used": sum(t.nbytes for t in tensors)}))
"""
)


def write_world(folder: Path) -> None:
    """The model, its global tokenizer and a text tokenizer of the model's vocabulary."""
    import torch
    from bench_load import write_random

    from fourm_lite.io.writing import write_file
    from fourm_lite.tokenization.vq.config import parse_config
    from fourm_lite.tokenization.vq.vqvae import VQTokenizer

    (folder / "model").mkdir()
    write_random(folder / "model")
    torch.manual_seed(0)
    tokenizer = VQTokenizer(parse_config(TOKENIZER))
    write_file(folder / "tokenizer" / "model.safetensors", tokenizer.state_dict(), metadata=None)
    (folder / "tokenizer" / "config.json").write_text(json.dumps(TOKENIZER))
    (folder / "text.json").write_text(json.dumps(text_tokenizer()))


def text_tokenizer() -> dict[str, Any]:
    """A WordPiece file of 30,000 entries: a small one, filled up with words of numbers."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_pipeline import text_tokenizer as small

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "tokenizer.json"
        small().save(path)
        told: dict[str, Any] = json.loads(path.read_text())
    vocabulary = told["model"]["vocab"]
    for number in range(len(vocabulary), 30_000):
        vocabulary[f"word{number}"] = number
    return told


def child(build: Path, code: str, *words: str, given: str = "") -> dict[str, Any]:
    """What a fresh process of a build prints."""
    more = {"PYTHONPATH": str(build), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], input=given, capture_output=True, text=True,
        env={**os.environ, **more}, cwd=build, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(builds: dict[str, Path], folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The best figures of each build: seconds and bytes."""
    place, own = str(folder), builds["this build"]
    used = json.dumps({"model": USED, "tokenizer": USED_OF_TOKENIZER})
    best: dict[str, dict[str, float]] = {name: {} for name in builds}
    for build in builds.values():  # warms the file cache and the byte code
        child(build, SEARCH, place)
    for _ in range(rounds):
        shared = child(own, READING, place, used) | child(own, TORCH)
        for name, build in builds.items():
            found = child(build, SEARCH, place)
            modules = json.dumps(found.pop("modules"))
            found |= shared | child(build, IMPORTS, given=modules)
            for key, value in found.items():
                best[name][key] = min(value, best[name].get(key, value))
    return best


def ratios(found: dict[str, float]) -> dict[str, float]:
    """What the limits are of."""
    return {
        "opening": found["opened"] / found["imports"],
        "first query": found["first"] / (found["later"] + found["reading"]),
        "peak memory": found["peak"] / (found["torch"] + found["used"]),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """The figures as a table of docs/performance.md."""
    rows = {
        "importing what it needs": lambda f: f"{f['imports']:.2f} s",
        "opening, imports included": lambda f: f"{f['opened']:.2f} s",
        "  beside importing (at most 1.2)": lambda f: f"{ratios(f)['opening']:.2f} x",
        "one forward pass": lambda f: f"{f['later']:.3f} s",
        "one reading of the tensors it uses": lambda f: f"{f['reading']:.3f} s",
        "first caption query": lambda f: f"{f['first']:.3f} s",
        "  beside pass and reading (at most 1.3)": lambda f: f"{ratios(f)['first query']:.2f} x",
        "interpreter and torch": lambda f: f"{f['torch'] / 1e9:.2f} GB",
        "the tensors it uses": lambda f: f"{f['used'] / 1e9:.2f} GB",
        "peak memory": lambda f: f"{f['peak'] / 1e9:.2f} GB",
        "  beside both (at most 1.1)": lambda f: f"{ratios(f)['peak memory']:.2f} x",
    }
    lines = [f"| | {' | '.join(results)} |", "| --- " * (len(results) + 1) + "|"]
    for label, shown in rows.items():
        lines.append(f"| {label} | {' | '.join(map(shown, results.values()))} |")
    return "\n".join(lines)


def run(folder: str | None, base: str, rounds: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place, other = Path(name), Path(name) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(other), base], check=True)
        try:
            write_world(place)
            return measure({"this build": ROOT, f"build {base}": other}, place, rounds)
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", help="where the temporary folder is made (4 GB)")
    parser.add_argument("--base", default=BASE, help="the build that runs beside this one")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    results = run(asked.folder, asked.base, asked.rounds)
    print(table(results))
    print(json.dumps(results))
    found = ratios(results["this build"])
    missed = {name: round(value, 3) for name, value in found.items() if value > LIMITS[name]}
    print("missed:", missed or "nothing")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
