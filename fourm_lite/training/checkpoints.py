"""What a run has seen, its log, and the folder `step-00000050/` from which it goes on.

Unusual: nothing random is saved. Batches, masks and dropout of step s depend on the seed and on s
alone, so a run that stops anywhere and goes on is the run that never stopped.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.files import (
    remove_folder,
    replacing_folder,
    storage_errors,
    write_json,
    write_whole,
)
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.io.writing import write_file
from fourm_lite.training.optim import Ema, plain_name
from fourm_lite.training.processes import whole_weights

STATE, MODEL, OPTIMIZER = "state.json", "model.safetensors", "optimizer.safetensors"
FILES = (STATE, MODEL, OPTIMIZER)
"""Of a checkpoint; what lacks one is none of ours and is never removed."""
MARK = ".made_by_fourm_lite"
_MODEL = ("config.json", "config.json.next", "model.safetensors")
LEFT: dict[str, tuple[str, ...]] = {
    "best": (*_MODEL, "best.json"), "final": _MODEL, "log.jsonl": (), "stopped.json": (),
}  # fmt: skip
"""What a run writes besides checkpoints: files, and folders with the names of what is in them."""
_STEP = re.compile(r"step-(\d{8})")
KEPT = "the checkpoints of before are unchanged, and the run goes on from the newest (--resume)"


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What a run has done.

    Units:
        step: optimiser steps done; samples: over all processes; seconds: spent training
        data: fingerprint of the stream, so that a run is not continued on other data
    """

    step: int = 0
    samples: int = 0
    epoch: float = 0.0
    seconds: float = 0.0
    data: str = ""

    def after(self, samples: int, epoch: float, seconds: float) -> Ledger:
        """The same one step later."""
        return replace(
            self,
            step=self.step + 1,
            samples=self.samples + samples,
            epoch=epoch,
            seconds=self.seconds + seconds,
        )


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first; a folder that lacks a file is none."""
    found = (p for p in Path(folder).glob("step-*") if _STEP.fullmatch(p.name))
    return sorted(p for p in found if all((p / name).is_file() for name in FILES))


def check_fresh(folder: Path) -> None:
    """Refuses a folder that holds a run.

    Raises:
        FourMError: it does
    """
    found = checkpoints(folder)
    if found:
        raise FourMError(
            f"{folder} already holds a run ({found[-1].name}); go on with resume (--resume), or "
            "choose another folder"
        )


def begin_run(folder: Path) -> None:
    """Makes and marks the folder of a run; what an earlier one left before a checkpoint goes.

    Files of others stay: only the names that a run writes are taken away, and only where the mark
    says that a run wrote them.

    Raises:
        ConfigError: something of such a name is there, and no run of ours made it
    """
    ours = (folder / MARK).is_file()
    for name, inside in LEFT.items():
        place = folder / name
        if not os.path.lexists(place):
            continue
        if not ours:
            raise ConfigError(
                f"{place} is in the way and was not made by fourm_lite; move it away, or choose "
                "another folder"
            )
        for file in [place / n for n in inside] or [place]:
            file.unlink(missing_ok=True)
        if inside and not any(place.iterdir()):
            place.rmdir()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("fourm_lite made this folder and takes its own files away.\n")


def save_state(
    folder: Path, model: nn.Module, optimizer: Optimizer, ema: Ema | None, ledger: Ledger
) -> Path:
    """Writes a checkpoint, whole or not at all; works for sharded models too (call it everywhere).

    Source:
        torch.distributed.checkpoint.state_dict, for the names of an optimiser's state
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(model, optimizer, options=options)
    average = {} if ema is None else _whole_average(model, ema)
    target = Path(folder) / f"step-{ledger.step:08d}"
    if _is_writer():
        moments = cast("Mapping[str, Mapping[str, Any]]", state["state"])
        record = {"ledger": asdict(ledger), "ema_updates": ema.updates if ema else None}
        with replacing_folder(target, kept=KEPT) as draft:
            write_file(draft / MODEL, cast("Any", weights), metadata=None)
            write_file(draft / OPTIMIZER, _flat(moments), metadata=None)
            if ema is not None:
                write_file(draft / "ema.safetensors", average, metadata=None)
            write_json(draft / STATE, record)
    return target


def load_state(path: Path, model: nn.Module, optimizer: Optimizer, ema: Ema | None) -> Ledger:
    """Takes a checkpoint up again.

    Raises:
        CheckpointError: it is of another model, or was written without the average asked for
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    try:
        record = json.loads((path / STATE).read_text())
        weights = load_tensors(path / MODEL)
        # Copies: the optimiser keeps and changes them, and the file goes with the next checkpoint
        tensors = _apart(load_tensors(path / OPTIMIZER))
        everything = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, cast("dict[str, Any]", weights), options=everything)
        state = {"state": _nested(tensors), "param_groups": _groups(model, optimizer)}
        # not strict: a parameter that no batch has touched yet has no state
        partly = StateDictOptions(full_state_dict=True, strict=False)
        set_optimizer_state_dict(model, optimizer, cast("Any", state), options=partly)
        _forget_untouched(model, optimizer, {str(name) for name in _nested(tensors)})
        if ema is not None:
            _load_average(path / "ema.safetensors", model, ema, int(record["ema_updates"]))
        return Ledger(**record["ledger"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot go on from {path}: {error}; start afresh in another folder, or without resume"
        ) from error


def _whole_average(model: nn.Module, ema: Ema) -> dict[str, Tensor]:
    """The averaged weights, whole on the first process also where each keeps a part."""
    with ema.applied(model):
        weights = whole_weights(model)
        # copies: on a CPU these are the model's own tensors, which the block's end changes
        return _apart({name: weights[name] for name in ema.average if name in weights})


def _load_average(path: Path, model: nn.Module, ema: Ema, updates: int) -> None:
    """Takes a saved average up, each process its part."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    saved = load_tensors(path)
    ema.check(saved)
    with ema.applied(model):
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(model, cast("dict[str, Any]", saved), options=options)
        ema.take(model, updates)


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints of a run that is over."""
    for path in checkpoints(folder):
        remove_folder(path)


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints; 0 keeps all."""
    if keep and _is_writer():
        ours = [path for path in checkpoints(folder) if (path / STATE).is_file()]
        for path in ours[:-keep]:
            remove_folder(path)


def _is_writer() -> bool:
    dist = torch.distributed
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _apart(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    return {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}


def _flat(state: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, entry in state.items()
        for key, value in entry.items()
    }


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    out: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("|")
        out.setdefault(name, {})[field] = value
    return out


def _groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The optimiser's groups of now, by name: settings come from the recipe, not from the file."""
    names = {id(p): plain_name(n) for n, p in model.named_parameters()}
    return [
        {
            **{k: v for k, v in g.items() if k != "params"},
            "params": [names[id(p)] for p in g["params"]],
        }
        for g in optimizer.param_groups
    ]


def _forget_untouched(model: nn.Module, optimizer: Optimizer, saved: set[str]) -> None:
    """Loading gives every parameter a state; those without one in the file must begin afresh."""
    for name, parameter in model.named_parameters():
        if plain_name(name) not in saved:
            optimizer.state.pop(parameter, None)


log = logging.getLogger(__name__)


class History:
    """The log of a run: a JSON object a line, always; trackio too, where wanted and installed.

    A run that goes on cuts it back to where it goes on.
    """

    def __init__(self, path: Path, project: str = "") -> None:
        self.path, self.project = path, project
        self._file: Any = None
        self._tracker: Any = None

    def open(self, step: int, is_main: bool) -> None:
        """Goes on after `step`: lines of later steps, which will come again, are removed."""
        if not is_main:
            return
        text = self.path.read_text("utf-8", "replace") if self.path.is_file() else ""
        lines = text.splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_whole(self.path, "".join(line + "\n" for line in kept), kept=KEPT)
        with storage_errors(self.path, kept=KEPT):
            self._file = self.path.open("a", encoding="utf-8")
        self._tracker = _trackio(self.project)

    def write(self, ledger: Ledger, numbers: Mapping[str, float]) -> None:
        """Adds one line."""
        if self._file is None or not numbers:
            return
        where = {"step": ledger.step, "epoch": round(ledger.epoch, 6), "samples": ledger.samples}
        line = {**where, "seconds": round(ledger.seconds, 3), **numbers}
        with storage_errors(self.path, kept=KEPT):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._tracker is not None:
            self._tracker.log(dict(numbers), step=ledger.step)

    def close(self) -> None:
        """Ends the log."""
        if self._file is not None:
            with storage_errors(self.path, kept=KEPT):
                self._file.close()
        if self._tracker is not None:
            self._tracker.finish()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62  # a line cut short by a crash


def _trackio(project: str) -> Any:
    if not project:
        return None
    try:
        import trackio
    except ImportError:
        log.warning("trackio is not installed; the run is logged to log.jsonl alone")
        return None
    trackio.init(project=project)
    return trackio
