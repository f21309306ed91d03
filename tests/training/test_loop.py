"""A run that stops goes on as if it had not: for every task, with an average and accumulation."""

from __future__ import annotations

import errno
import math
import os

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import (
    TASKS,
    classifying,
    course,
    losses,
    mixed_pretraining,
    pretraining,
    tokenizing,
)

from fourm_lite.data.loader import ArrayStream
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, StorageError
from fourm_lite.io import files
from fourm_lite.io.files import alone
from fourm_lite.training import loop
from fourm_lite.training.checkpoints import FILES, checkpoints
from fourm_lite.training.loop import TrainConfig, fit
from fourm_lite.training.processes import scoped_noise

RUNS = ("straight", "parts")


class Stop(Exception):
    """Stands for a machine that goes away."""


def stop_at(step):
    def progress(done, total, numbers):
        if done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("name", TASKS)
def test_a_run_killed_in_mid_epoch_and_resumed_is_the_straight_run(tmp_path, name):
    task, stream = TASKS[name]()
    fit(task, stream, course(tmp_path / "straight"))
    expected = {k: v.clone() for k, v in task.model.state_dict().items()}

    task, stream = TASKS[name]()
    with pytest.raises(Stop):
        fit(task, stream, course(tmp_path / "parts"), progress=stop_at(7))
    task, stream = TASKS[name]()
    result = fit(task, stream, course(tmp_path / "parts"), resume=True)

    assert result.done
    assert result.ledger.step == 10
    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / "parts")),
        torch.tensor(losses(tmp_path / "straight")),
        rtol=0,
        atol=1e-6,
    )
    for key, value in task.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fifty_steps_and_fifty_more_are_a_hundred_with_sources_and_processes(tmp_path):
    changes = {"save_every": 50, "processes": 2}
    task, stream = mixed_pretraining()
    fit(task, stream, course(tmp_path / "straight", steps=100, **changes))

    task, stream = mixed_pretraining()
    with pytest.raises(Stop):
        fit(task, stream, course(tmp_path / "parts", steps=100, **changes), progress=stop_at(50))
    task, stream = mixed_pretraining()
    assert stream.epoch(50) % 1 > 0.01
    fit(task, stream, course(tmp_path / "parts", steps=100, **changes), resume=True)

    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "straight"), abs=1e-6)
    final, again = (load_file(tmp_path / run / "final" / "model.safetensors") for run in RUNS)
    for name, value in final.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)


def test_training_lowers_the_loss_of_a_tokenizer(tmp_path):
    task, _ = tokenizing("memcodes")
    patterns = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    stream = ArrayStream(patterns.expand(3, 2, 4, 4).repeat(4, 1, 1, 1), 6)

    fit(task, stream, course(tmp_path, steps=60, save_every=0))

    seen = losses(tmp_path)
    assert sum(seen[-10:]) < 0.5 * sum(seen[:10])


@pytest.mark.parametrize("how", ["workers", "processes"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_who_prepares_the_batches_changes_nothing(tmp_path, how):
    for count in (0, 2):
        task, stream = pretraining()
        fit(task, stream, course(tmp_path / str(count), steps=4, **{how: count}))

    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_two_half_batches_accumulated_are_one_gradient(tmp_path):
    values = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    class Fixed:
        fingerprint = "fixed"

        def __init__(self, size):
            self.size = size

        def epoch(self, step):
            return 0.0

        def batch(self, step, *, rank=0, world=1):
            start = step * self.size % 8
            return values[start : start + self.size]

    weights = []
    for size, accumulate in ((8, 1), (4, 2)):
        task, _ = tokenizing()
        task.model.config = task.model.config.__class__(
            **{**vars(task.model.config), "freeze_enc": True}
        )
        fit(task, Fixed(size), course(tmp_path / str(size), steps=3, accumulate=accumulate))
        weights.append(task.model.decoder.linear_out.weight.detach().clone())

    torch.testing.assert_close(*weights)


def test_checkpoints_are_pruned_and_no_part_is_left(tmp_path):
    task, stream = tokenizing()

    fit(task, stream, course(tmp_path, steps=12, save_every=3))

    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000009", "step-00000012"]
    assert not list(tmp_path.glob(".*.tmp"))
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".pt", ".pkl", ".bin", ".pth"}]
    assert (tmp_path / "final" / "model.safetensors").is_file()


class KilledError(BaseException):
    """Stands for SIGKILL."""


def cut_short(path, **_):
    """Removes one file of a folder, then the process is gone."""
    next(path.iterdir()).unlink()
    raise KilledError


def test_a_kill_while_old_checkpoints_are_removed_leaves_no_half_one(tmp_path, monkeypatch):
    task, stream = tokenizing()
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", cut_short)
        with pytest.raises(KilledError):
            fit(task, stream, course(tmp_path, steps=12, save_every=3))
    assert all((p / name).is_file() for p in tmp_path.glob("step-*") for name in FILES)

    task, stream = tokenizing()
    result = fit(task, stream, course(tmp_path, steps=12, save_every=3), resume=True)

    assert result.ledger.step == 12
    assert not list(tmp_path.glob(".*.tmp"))


def test_old_checkpoints_that_a_kill_left_go_when_the_run_goes_on_wherever_it_ends(
    tmp_path, monkeypatch
):
    task, stream = tokenizing()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "prune", lambda *_: None)
        with pytest.raises(Stop):
            fit(task, stream, course(tmp_path, steps=12, save_every=3), progress=stop_at(10))
    assert len(checkpoints(tmp_path)) == 3

    task, stream = tokenizing()
    go_on = course(tmp_path, steps=12, save_every=3, keep=1)
    with pytest.raises(Stop):
        fit(task, stream, go_on, resume=True, progress=stop_at(11))

    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000009"]


@pytest.mark.parametrize("name", FILES)
def test_half_a_checkpoint_is_none(tmp_path, name):
    task, stream = tokenizing()
    fit(task, stream, course(tmp_path, steps=6, save_every=3))
    (checkpoints(tmp_path)[-1] / name).unlink()

    task, stream = tokenizing()
    result = fit(task, stream, course(tmp_path, steps=6, save_every=3), resume=True)

    assert result.done
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000003", "step-00000006"]


def test_another_process_in_the_folder_of_a_run_is_refused(tmp_path):
    task, stream = tokenizing()

    with alone(tmp_path), pytest.raises(FourMError, match="another process is at work"):
        fit(task, stream, course(tmp_path))


def test_a_full_disk_is_a_sentence_that_says_what_is_kept(tmp_path, monkeypatch):
    task, stream = tokenizing()
    fit(task, stream, course(tmp_path, steps=6, save_every=3, max_seconds=1e-9))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    task, stream = tokenizing()
    with pytest.raises(StorageError, match=r"the disk is full.*checkpoints of before"):
        fit(task, stream, course(tmp_path, steps=6, save_every=3), resume=True)
    monkeypatch.undo()

    task, stream = tokenizing()
    assert fit(task, stream, course(tmp_path, steps=6), resume=True).done


def test_a_run_that_ran_out_of_time_says_so_and_goes_on(tmp_path):
    task, stream = tokenizing()

    first = fit(task, stream, course(tmp_path, max_seconds=1e-9))
    second = fit(task, stream, course(tmp_path), resume=True)

    assert (first.done, first.ledger.step) == (False, 1)
    assert (second.done, second.ledger.step) == (True, 10)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    task, stream = tokenizing()
    fit(task, stream, course(tmp_path, steps=2))

    with pytest.raises(FourMError, match="already holds a run"):
        fit(task, stream, course(tmp_path, steps=4))


def test_a_run_is_not_resumed_on_other_data_or_another_model(tmp_path):
    task, stream = tokenizing()
    fit(task, stream, course(tmp_path, steps=2))

    with pytest.raises(FourMError, match="other data"):
        fit(task, ArrayStream(stream.values, 5), course(tmp_path, steps=4), resume=True)
    with pytest.raises(CheckpointError, match="cannot go on"):
        fit(classifying()[0], stream, course(tmp_path, steps=4), resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    task, stream = tokenizing()
    broken = ArrayStream(stream.values * math.nan, 3)

    with pytest.raises(FourMError, match="learning rate"):
        fit(task, broken, course(tmp_path))


def test_noise_of_a_step_leaves_the_global_state_alone():
    before = torch.get_rng_state()

    with scoped_noise(1, 2, 0) as generator:
        first = torch.rand(3), torch.rand(3, generator=generator)
    with scoped_noise(1, 2, 0) as generator:
        again = torch.rand(3), torch.rand(3, generator=generator)
    with scoped_noise(1, 3, 0):
        other = torch.rand(3)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other)


@pytest.mark.parametrize("changes", [{"steps": -1}, {"accumulate": 0}, {"keep": -1}])
def test_impossible_courses_are_refused(tmp_path, changes):
    with pytest.raises(ConfigError):
        TrainConfig(out=tmp_path, **{"steps": 3, **changes})


def test_a_course_without_an_end_is_not_begun(tmp_path):
    task, stream = tokenizing()

    with pytest.raises(ConfigError, match="--steps"):
        fit(task, stream, course(tmp_path / "run", steps=0))
    assert not (tmp_path / "run").exists()
