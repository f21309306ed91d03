"""Several processes train as one, sharded or not; a kill in the middle of a save costs no run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp
from safetensors.torch import load_file
from tiny_training import course, even_pretraining, losses, pretraining, tokenizing

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.training import processes
from fourm_lite.training.checkpoints import checkpoints
from fourm_lite.training.loop import fit

TESTS = Path(__file__).resolve().parents[1]
WORLD = 2
HAS_FSDP = pytest.mark.skipif(
    not hasattr(torch.distributed.fsdp, "fully_shard"), reason="this torch has no fully_shard"
)
# a shift of all keys changes no attention: the gradient is rounding alone, which Adam blows up
NO_GRADIENT = "kv.bias"


def start(scenario: str, out: Path, **variables: object) -> subprocess.Popen[str]:
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    env |= {key: str(value) for key, value in variables.items()}
    words = [sys.executable, str(TESTS / "train_in_processes.py"), scenario, str(out)]
    return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)


def run_together(scenario: str, out: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": WORLD}
    where["LOCAL_WORLD_SIZE"] = WORLD
    started = [start(scenario, out, RANK=r, LOCAL_RANK=r, **where) for r in range(WORLD)]
    try:
        ends = [p.communicate(timeout=300)[1] for p in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode for p in started] == [0] * WORLD, "\n".join(ends)[-4000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with the batch of two: its losses and its weights."""
    out = tmp_path_factory.mktemp("alone")
    task, stream = even_pretraining(batch_size=2 * WORLD)
    fit(task, stream, course(out, steps=6, save_every=3))
    return losses(out), load_file(out / "final" / "model.safetensors")


@pytest.mark.parametrize("scenario", ["data_parallel", pytest.param("sharded", marks=HAS_FSDP)])
def test_two_processes_are_one_with_twice_the_batch_and_resume_exactly(scenario, alone, tmp_path):
    expected, weights = alone

    run_together(scenario, tmp_path)

    assert losses(tmp_path / "straight") == pytest.approx(expected, abs=1e-5)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "straight"), abs=1e-6)
    for run in ("straight", "parts"):
        final = load_file(tmp_path / run / "final" / "model.safetensors")
        assert final.keys() == weights.keys()
        for name in sorted(n for n in final if not n.endswith(NO_GRADIENT)):
            torch.testing.assert_close(final[name], weights[name], rtol=0, atol=1e-4, msg=name)


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_checkpoint_and_the_run_goes_on(tmp_path):
    task, stream = pretraining()
    fit(task, stream, course(tmp_path / "straight", steps=10, save_every=3))

    process = start("killed", tmp_path / "run")
    process.communicate(timeout=300)

    assert process.returncode == -signal.SIGKILL
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-00000003"]
    task, stream = pretraining()
    result = fit(task, stream, course(tmp_path / "run", steps=10, save_every=3), resume=True)
    assert result.done
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "straight"), abs=1e-6)
    assert not list((tmp_path / "run").glob(".*.tmp"))


@pytest.mark.parametrize("task_of", [pretraining, tokenizing])
def test_bf16_trains_like_float32_and_keeps_float32_weights(tmp_path, task_of):
    for precision in ("no", "bf16"):
        task, stream = task_of()
        fit(task, stream, course(tmp_path / precision, steps=8, precision=precision))

    half, full = losses(tmp_path / "bf16"), losses(tmp_path / "no")
    assert half == pytest.approx(full, rel=0.05)
    assert half != full
    weights = load_file(checkpoints(tmp_path / "bf16")[-1] / "model.safetensors")
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float32}


def test_the_first_version_of_fsdp_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "is_sharded", lambda accelerator: True)

    with pytest.raises(ConfigError, match="--fsdp_version 2"):
        processes.make_accelerator("no")


@pytest.mark.parametrize(("word", "cpu"), [("cpu", True), ("", False)])
def test_the_cpu_is_asked_of_accelerate(monkeypatch, word, cpu):
    import accelerate

    asked = []
    make = accelerate.Accelerator
    monkeypatch.setattr(
        accelerate, "Accelerator", lambda **words: asked.append(words["cpu"]) or make(**words)
    )

    made = processes.make_accelerator("no", word)

    assert asked == [cpu]
    assert not cpu or made.device.type == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert processes.chosen_device("") == "cpu"
    with pytest.raises(FourMError, match="found none; choose 'cpu'"):
        processes.chosen_device("cuda")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        processes.chosen_device("cuda:1")


def test_a_run_on_the_cpu_does_not_keep_the_next_one_there():
    from accelerate.state import PartialState

    processes.make_accelerator("no", "cpu")
    processes.make_accelerator("no")

    assert not PartialState._shared_state["_cpu"]
