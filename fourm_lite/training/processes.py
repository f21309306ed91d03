"""Several processes in one run: what is asked of accelerate, decisions that all of them take, whole
weights where FSDP keeps a part of them on each, and batches made ready ahead of their step.

A batch is a function of its step, so whether it is made at once, by threads or by processes, the
run is the same.

Unusual: FSDP is that of `fully_shard` (version 2), which leaves a model's own class and names.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fourm_lite.errors import ConfigError, FourMError, check_choice

Device = Literal["", "cpu", "cuda"]
DEVICES: dict[str, Device] = {"cpu": "cpu", "cuda": "cuda"}


def chosen_device(word: str) -> Device:
    """The device of a run by its word; "" is a GPU where there is one, else the CPU.

    Raises:
        ConfigError: neither "cpu" nor "cuda"
        FourMError: there is no GPU here
    """
    has_gpu = torch.cuda.is_available()
    if not word:
        return "cuda" if has_gpu else "cpu"
    check_choice(
        "a device", word, of=DEVICES,
        advice="One GPU of several is chosen with CUDA_VISIBLE_DEVICES.",
    )  # fmt: skip
    if word == "cuda" and not has_gpu:
        raise FourMError("'cuda' needs a GPU that torch can use, found none; choose 'cpu'")
    return DEVICES[word]


def make_accelerator(precision: str, device: str = "") -> Any:
    """An accelerator for one run, whatever the precision and device of the run before it in this
    process.

    Raises:
        ConfigError: it was launched with the first version of FSDP; or as `chosen_device`
        FourMError: as `chosen_device`
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

    cpu = bool(device) and chosen_device(device) == "cpu"
    stays = cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    if bool(PartialState._shared_state.get("_cpu", stays)) != stays:
        AcceleratorState._reset_state(reset_partial_state=True)

    before = AcceleratorState._shared_state.get("_mixed_precision", precision)
    if before != precision:  # accelerate keeps one for the whole process
        AcceleratorState._reset_state()
    # The batch of a mixture touches the tables of its own modalities alone.
    some_unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[some_unused])
    if is_sharded(accelerator) and not getattr(accelerator, "is_fsdp2", False):
        raise ConfigError(
            "this loop shards weights with FSDP 2, got version 1; launch it with "
            "`accelerate launch --use_fsdp --fsdp_version 2`"
        )
    return accelerator


def is_sharded(accelerator: Any) -> bool:
    """Whether each process keeps only a part of the weights."""
    return str(accelerator.distributed_type).endswith("FSDP")


def any_of(accelerator: Any, own: bool) -> bool:
    """Whether it is so on any process: the same answer on all of them."""
    if accelerator.num_processes == 1:
        return own
    return bool(accelerator.reduce(torch.tensor(float(own), device=accelerator.device)) > 0)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Names and whole values of a model's state on the first process; call it on every one."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=options)
    return dict(weights)


@contextmanager
def whole_state(model: nn.Module, accelerator: Any) -> Iterator[None]:
    """Inside the block the `state_dict` of a sharded model holds whole weights, on the first
    process.
    """
    if not is_sharded(accelerator):
        yield
        return
    weights = whole_weights(model)
    model.state_dict = lambda: weights  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del model.state_dict


@contextmanager
def scoped_noise(seed: int, step: int, rank: int) -> Iterator[torch.Generator]:
    """A generator for one step; inside, torch's own state follows it too and is then put back.

    Dropout draws from torch's global generator, which is why a passed generator is not enough.
    """
    number = (seed * 1_000_003 + step) * 4099 + rank
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(number % 2**63)
        yield torch.Generator().manual_seed((number + 2**40) % 2**63)


AHEAD = 2
"""Steps that each process keeps ready."""


class Stream(Protocol):
    """Batches as a function of the step."""

    @property
    def fingerprint(self) -> str:
        """Tells this data, in this order, from other data."""
        ...

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Any:
        """The batch of a step for one of `world` processes."""
        ...

    def epoch(self, step: int) -> float:
        """Passes over the data before that step."""
        ...


@dataclass(frozen=True)
class Batches:
    """All batches of an optimiser step; by number, as torch's loaders ask for them."""

    stream: Stream
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def __getitem__(self, step: int) -> list[Any]:
        first = step * self.accumulate
        return [
            self.stream.batch(first + i, rank=self.rank, world=self.world)
            for i in range(self.accumulate)
        ]


def in_threads(load: Batches, steps: Sequence[int], count: int) -> Iterator[list[Any]]:
    """The batches of the steps, `count` of them in the making; 0 makes each when it is due."""
    if not count:
        yield from (load[step] for step in steps)
        return
    with ThreadPoolExecutor(count) as pool:
        ahead: deque[Future[list[Any]]] = deque()
        for step in steps:
            # In this context, so that who is hearing what is left out (`photos.records`) hears it
            ahead.append(pool.submit(copy_context().run, load.__getitem__, step))
            if len(ahead) > count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def in_processes(load: Batches, steps: Sequence[int], count: int) -> Iterable[list[Any]]:
    """The batches of the steps, made by `count` processes with one thread each."""
    from torch.utils.data import DataLoader

    loader: DataLoader[list[Any]] = DataLoader(
        load,  # type: ignore[arg-type]
        batch_size=None,
        sampler=steps,
        num_workers=count,
        prefetch_factor=AHEAD,
        worker_init_fn=_one_thread,
    )
    with warnings.catch_warnings():
        # where lance was imported it warns of every fork; these processes read no table
        warnings.filterwarnings("ignore", "lance is not fork-safe")
        return iter(loader)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
