"""One training loop for every task, on accelerate: a CPU, a GPU, several processes, FSDP, bf16.

Unusual: a batch is a function of the step, so nothing but the step is needed to go on after a stop,
also in the middle of an epoch. All noise inside a step (dropout, dead codes) follows from (seed,
step, process); torch's global state is put back afterwards.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, FourMError, check_most
from fourm_lite.io.files import alone, remove_leftovers
from fourm_lite.progress import StepProgress
from fourm_lite.training.checkpoints import (
    History,
    Ledger,
    check_fresh,
    checkpoints,
    load_state,
    prune,
    save_state,
)
from fourm_lite.training.optim import Ema, OptimConfig, lr_factor, make_optimizer, set_lr
from fourm_lite.training.processes import (
    Batches,
    Device,
    Stream,
    any_of,
    in_processes,
    in_threads,
    is_sharded,
    make_accelerator,
    scoped_noise,
    whole_state,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Losses:
    """The losses of one batch.

    Shapes:
        total: float[], to be minimised; parts: name -> float[], shown only
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    samples: int


class Task(Protocol):
    """A model, and what it learns."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    def step(self, model: nn.Module, batch: Any, generator: torch.Generator) -> Losses:
        """The losses of one batch; `model` may be a wrapped form of `self.model`."""
        ...

    def validate(self, step: int) -> dict[str, float]:
        """Metrics on the validation data after a step, if the task has any; else nothing.

        A run that was killed validates the steps since its last checkpoint again.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the model for use."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how a run goes.

    Units:
        steps: optimiser steps in all, 0 leaves it to whoever runs it (--steps); accumulate: batches
            a step
        log_every, eval_every, save_every: steps, 0 for never; keep: checkpoints, 0 for all
        ema: decay, 0 for none; max_seconds: stops (resumably) after that time, 0 for never
        workers: threads that prepare batches ahead, 0 for none; processes: processes that do so
            instead, for a GPU that is fed faster than one interpreter can decode photos
        track: a project name for trackio, if that is installed
        device: "cpu" or "cuda"; "" takes what accelerate was launched for, a GPU where there is one
    """

    out: Path
    steps: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float = 0.0
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 500
    keep: int = 2
    max_seconds: float = 0.0
    workers: int = 0
    processes: int = 0
    track: str = ""
    device: Device = ""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot run."""
        check_most(1 << 40, steps=self.steps, max_seconds=self.max_seconds)
        check_most(1 << 16, accumulate=self.accumulate)
        check_most(1024, workers=self.workers, processes=self.processes)
        if self.steps < 0 or self.accumulate < 1:
            raise ConfigError(f"steps must be at least 0, accumulate at least 1, got {self}")
        names = ("log_every", "eval_every", "save_every", "keep", "workers", "processes")
        counts = [getattr(self, name) for name in names]
        if min(counts) < 0:
            raise ConfigError(f"{', '.join(names)} >= 0, got {counts}")


@dataclass(frozen=True)
class FitResult:
    """How a run ended; `done` is False when its time ran out first."""

    ledger: Ledger
    done: bool
    last: Mapping[str, float]


def fit(
    task: Task,
    data: Stream,
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: StepProgress | None = None,
) -> FitResult:
    """Trains a task; writes `log.jsonl`, `step-*` folders and, at the end, `final/` under `out`.

    Raises:
        ConfigError: `config` has no number of steps
        FourMError: the loss is not finite; or the folder holds a run and `resume` is False; or
            another process trains there
        StorageError: the disk takes no more; the last checkpoint is kept
        CheckpointError: the run to resume is of another model
    """
    if not config.steps:
        raise ConfigError("the recipe says no number of steps; give one (--steps)")
    run = _Run(task, data, config)
    with alone(config.out) if run.is_main else nullcontext():
        return _fit(run, resume, progress)


def _fit(run: _Run, resume: bool, progress: StepProgress | None) -> FitResult:
    config = run.config
    if run.is_main:
        remove_leftovers(config.out, alone=True)
    ledger = run.restore(resume)
    prune(config.out, config.keep)  # a kill may have come before older checkpoints were removed
    run.history.open(ledger.step, run.is_main)
    started = time.monotonic()
    numbers: dict[str, float] = {}
    try:
        for step, batches in run.batches(ledger.step):
            ledger, numbers = run.step(step, batches, ledger)
            run.after(ledger, numbers, progress)
            if config.max_seconds and run.is_late(started):
                break
    finally:
        run.history.close()
    done = ledger.step >= config.steps
    run.finish(ledger, done)
    return FitResult(ledger, done, numbers)


class _Run:
    """The moving parts of one call of `fit`."""

    def __init__(self, task: Task, data: Stream, config: TrainConfig) -> None:
        self.task, self.data, self.config = task, data, config
        self.accelerator = make_accelerator(config.precision, config.device)
        self.optimizer = make_optimizer(task.model, config.optim)
        self.model, self.optimizer = self.accelerator.prepare(task.model, self.optimizer)
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.history = History(config.out / "log.jsonl", config.track)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def plain_optimizer(self) -> torch.optim.Optimizer:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        assert isinstance(inner, torch.optim.Optimizer)
        return inner

    def is_late(self, started: float) -> bool:
        """Whether the time of any process is up; the others stop with it."""
        return any_of(self.accelerator, time.monotonic() - started > self.config.max_seconds)

    def restore(self, resume: bool) -> Ledger:
        found = checkpoints(self.config.out)
        fresh = Ledger(data=self.data.fingerprint)
        if not resume:
            check_fresh(self.config.out)
        if not found:
            return fresh
        ledger = load_state(found[-1], self.model, self.plain_optimizer, self.ema)
        if ledger.data != fresh.data:
            raise FourMError(
                f"{found[-1]} was trained on other data ({ledger.data}, now {fresh.data}); "
                "a resumed run needs the same samples, mixture and batch size"
            )
        return ledger

    def batches(self, start: int) -> Iterator[tuple[int, list[Any]]]:
        a = self.accelerator
        load = Batches(self.data, self.config.accumulate, a.process_index, a.num_processes)
        # A batch follows from its number, so a resumed run asks for those that are left, no more.
        steps = range(start, self.config.steps)
        if self.config.processes:
            return zip(steps, in_processes(load, steps, self.config.processes), strict=True)
        return zip(steps, in_threads(load, steps, self.config.workers), strict=True)

    def step(
        self, step: int, batches: list[Any], ledger: Ledger
    ) -> tuple[Ledger, dict[str, float]]:
        """One optimiser step over its batches."""
        config, started = self.config, time.monotonic()
        self.model.train()
        rate = set_lr(self.plain_optimizer, lr_factor(step, config.steps, config.optim))
        parts: dict[str, list[Tensor]] = {}
        samples = 0
        with scoped_noise(config.seed, step, self.accelerator.process_index) as generator:
            for i, batch in enumerate(batches):
                losses = self._backward(batch, generator, last=i == len(batches) - 1)
                samples += losses.samples
                for name, value in {"loss": losses.total, **losses.parts}.items():
                    parts.setdefault(name, []).append(value.detach().float())
        numbers = self._reduced(parts)
        norm = self._update()
        # The update is made by now, but it spoils only weights that no checkpoint holds.
        if not all(map(math.isfinite, (numbers["loss"], norm))):
            raise FourMError(
                f"step {step}: loss {numbers['loss']}, gradient norm {norm}; lower the learning "
                f"rate or clip, and resume from the last checkpoint in {config.out}"
            )
        seconds = time.monotonic() - started
        total = samples * self.accelerator.num_processes
        epoch = self.data.epoch((step + 1) * config.accumulate)
        numbers |= {"lr": rate, "grad_norm": norm, "samples_per_s": total / max(seconds, 1e-9)}
        return ledger.after(total, epoch, seconds), numbers

    def _backward(self, batch: Any, generator: torch.Generator, *, last: bool) -> Losses:
        accelerator = self.accelerator
        moved = batch.to(accelerator.device) if hasattr(batch, "to") else batch
        # Processes exchange gradients once a step, with the last of its batches.
        quiet = nullcontext() if last else accelerator.no_sync(self.model)
        with quiet, accelerator.autocast():
            losses = self.task.step(self.model, moved, generator)
            accelerator.backward(losses.total / self.config.accumulate)
        return losses

    def _reduced(self, parts: Mapping[str, list[Tensor]]) -> dict[str, float]:
        own = {name: float(torch.stack(values).mean()) for name, values in parts.items()}
        if self.accelerator.num_processes == 1:
            return own
        from accelerate.utils import gather_object

        # Objects, not tensors: processes may draw other components, whose losses have other names.
        rows: list[dict[str, float]] = gather_object([own])
        names = {name for row in rows for name in row}
        return {
            name: sum(values) / len(values)
            for name in sorted(names)
            if (values := [row[name] for row in rows if name in row])
        }

    def _update(self) -> float:
        limit = self.config.optim.clip or float("inf")  # without a limit the norm is still logged
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)
        return float(norm) if norm is not None else 0.0

    def after(
        self, ledger: Ledger, numbers: Mapping[str, float], progress: StepProgress | None
    ) -> None:
        """Logs, validates and saves, where a step is due for it."""
        config, step = self.config, ledger.step
        if self.is_main and _due(step, config.log_every):
            self.history.write(ledger, numbers)
        figures: dict[str, float] = {}
        if _due(step, config.eval_every):
            figures = self.validate(step)
            self.history.write(ledger, figures)
        if _due(step, config.save_every) and step < config.steps:
            self.save(ledger)
        if progress is not None and self.is_main:
            progress(step, config.steps, {**numbers, **figures})

    def validate(self, step: int) -> dict[str, float]:
        """Metrics of the averaged weights, or of the weights if there is no average."""
        averaged = self.ema.applied(self.model) if self.ema else nullcontext()
        self.model.eval()
        # a sharded model computes on all processes or on none
        takes_part = self.is_main or is_sharded(self.accelerator)
        with averaged, torch.no_grad():
            metrics = self.task.validate(step) if takes_part else {}
        self.model.train()
        return {f"val/{name}": value for name, value in metrics.items()}

    def save(self, ledger: Ledger) -> None:
        save_state(self.config.out, self.model, self.plain_optimizer, self.ema, ledger)
        prune(self.config.out, self.config.keep)

    def finish(self, ledger: Ledger, done: bool) -> None:
        """Saves the state, and the model for use when the run is done."""
        found = checkpoints(self.config.out)
        if not found or found[-1].name != f"step-{ledger.step:08d}":
            self.save(ledger)
        self.accelerator.wait_for_everyone()
        self.model.eval()
        averaged = self.ema.applied(self.model) if self.ema else nullcontext()
        if done:
            with averaged, whole_state(self.task.model, self.accelerator):
                if self.is_main:
                    self.task.save(self.config.out / "final")
        self.accelerator.wait_for_everyone()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
