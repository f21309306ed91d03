"""What one of several training processes runs: SCENARIO FOLDER; started by test_processes.py."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from tiny_training import course, even_pretraining, pretraining

from fourm_lite.training import checkpoints as ledger
from fourm_lite.training.loop import fit
from fourm_lite.training.tasks import PretrainTask

RANK = int(os.environ.get("RANK", "0"))
STEPS = 6


class Broken(Exception):
    """Stands for a machine that goes away."""


class UpTo:
    """A stream that breaks at a step, on every process alike."""

    def __init__(self, stream, step):
        self.stream, self.step = stream, step
        self.fingerprint, self.epoch = stream.fingerprint, stream.epoch

    def batch(self, step, *, rank=0, world=1):
        if step == self.step:
            raise Broken
        return self.stream.batch(step, rank=rank, world=world)


def straight_and_resumed(out: Path) -> PretrainTask:
    """A run, and the same in two parts: saved at 3, broken at 5; returns the last one's task."""
    task, stream = even_pretraining(batch_size=2)
    fit(task, stream, course(out / "straight", steps=STEPS, save_every=3))
    task, stream = even_pretraining(batch_size=2)
    try:
        fit(task, UpTo(stream, 5), course(out / "parts", steps=STEPS, save_every=3))
    except Broken:
        task, stream = even_pretraining(batch_size=2)
        fit(task, stream, course(out / "parts", steps=STEPS, save_every=3), resume=True)
    return task


def uneven_clocks(out: Path) -> None:
    """The time of one process is up at once, that of the other never; then both go on."""
    task, stream = even_pretraining(batch_size=2)
    seconds = 1e9 if RANK == 0 else 1e-9
    assert not fit(task, stream, course(out / "late", steps=3, max_seconds=seconds)).done
    assert fit(task, stream, course(out / "late", steps=3), resume=True).done


def data_parallel(out: Path) -> None:
    straight_and_resumed(out)
    uneven_clocks(out)


def sharded(out: Path) -> None:
    """FSDP over gloo. accelerate turns it on for GPUs alone; the state is told that it is on."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.tensor import DTensor

    Accelerator(mixed_precision="no")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=False,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block", "DecoderBlock"],
        cpu_ram_efficient_loading=False,
    )
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    task = straight_and_resumed(out)
    assert all(isinstance(p.data, DTensor) for p in task.model.parameters())


def killed(out: Path) -> None:
    """kill -9 when half of the second checkpoint's weights is written."""
    whole, count = ledger.write_file, [0]

    def half(path, tensors, *, metadata):
        whole(path, tensors, metadata=metadata)
        count[0] += path.name == "model.safetensors"
        if count[0] == 2:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    ledger.write_file = half
    task, stream = pretraining()
    fit(task, stream, course(out, steps=10, save_every=3))


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenarios = {f.__name__: f for f in (data_parallel, sharded, killed)}
    scenarios[sys.argv[1]](Path(sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
