"""Work spread over Ray's processes, on one machine or many: values in, results in any order.

Ray places the processes, starts those again that died, and gives them their value again. What a
process is made of must be small (paths and settings): Ray keeps large arguments in a store that
may be gone when a process is started again, so that what is large is opened by the process itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fourm_lite.errors import ConfigError, FourMError

TOKENS = "a cluster that wants a token is reached with RAY_AUTH_MODE=token (docs/scale.md)"
RETRIES = 3
"""How often a value is given again whose process died: it may kill the library that reads it."""
Work = Callable[[Any, Any], Any]
"""A value, and what all values share -> its result."""


@dataclass(frozen=True)
class Cluster:
    """Where the processes run.

    Args:
        address: of a running Ray cluster; None: RAY_ADDRESS, else one is started on this machine
        workers: how many processes work
        cpus, gpus: what each takes of its machine; shares such as 0.5 are allowed
    """

    address: str | None = None
    workers: int = 2
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 4096 or self.cpus <= 0 or self.gpus < 0:
            raise ConfigError(
                f"a cluster has 1 to 4096 workers, each with a share of CPUs, got {self}"
            )

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """Ray itself; started and stopped again where it was not running.

        Raises:
            ConfigError: it is not installed, cannot be reached, or has too little
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of a run
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15, where other work would come first
        try:
            import ray
        except ImportError as error:
            raise ConfigError("this engine needs Ray: pip install ray") from error
        was_there = ray.is_initialized()
        if not was_there:
            self._start(ray)
        try:
            self._require_room(ray.cluster_resources())
            yield ray
        finally:
            if not was_there:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        on_main = threading.current_thread() is threading.main_thread()
        stop = signal.getsignal(signal.SIGTERM)
        # without one Ray would join whatever was started on this machine last
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            ray.init(
                address=address, log_to_driver=False, include_dashboard=False, logging_level="ERROR"
            )
        except Exception as error:  # Ray raises plain ones where a machine is too busy to start it
            line = (str(error).splitlines() or [type(error).__name__])[0]
            where = "on this machine" if address == "local" else f"at {address}"
            told = "" if address == "local" else f"; {TOKENS}"
            raise ConfigError(f"Ray {where}: {line}{told}") from error
        finally:
            if on_main:  # Ray's own ends the process without a word
                signal.signal(signal.SIGTERM, stop)

    def _require_room(self, has: dict[str, float]) -> None:
        for name, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if each * self.workers > has.get(name, 0):
                raise ConfigError(
                    f"{self.workers} workers with {each:g} {name} each are more than the "
                    f"{has.get(name, 0):g} of the cluster; give fewer, or a smaller share"
                )

    def started(self, ray: Any, opened: Callable[[], Work]) -> Crew:
        """The processes, each with what it opened; small arguments only, see above."""
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        actor = ray.remote(max_restarts=-1, max_task_retries=RETRIES, **options)(_Actor)
        return Crew(ray, [actor.remote(opened, os.getcwd()) for _ in range(self.workers)])


class Crew:
    """Processes that work on values."""

    def __init__(self, ray: Any, actors: list[Any]) -> None:
        self._ray, self._actors = ray, actors

    def run(self, values: Iterable[Any], shared: Any = None) -> Iterator[tuple[int, Any]]:
        """Number of a value, and its result, as they end; `shared` is sent once a machine.

        Raises:
            FourMError: the first one that a process raised; or one died again and again
        """
        from ray.util import ActorPool

        pool, one = ActorPool(self._actors), self._ray.put(shared)
        waiting = enumerate(values)
        with _told():
            while True:
                while pool.has_free() and (given := next(waiting, None)) is not None:
                    pool.submit(lambda actor, given: actor.work.remote(*given, one), given)
                if not pool.has_next():
                    return
                yield pool.get_next_unordered()


class _Actor:
    """One process."""

    def __init__(self, opened: Callable[[], Work], folder: str) -> None:
        with contextlib.suppress(OSError):  # names of files are relative to it, where it is there
            os.chdir(folder)
        self._work = opened()

    def work(self, number: int, value: Any, shared: Any) -> tuple[int, Any]:
        return number, self._work(value, shared)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What happened in a process, as an error of ours."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FourMError):
            raise type(cause)(str(cause)) from error
        raise FourMError(f"a worker failed: {type(cause).__name__}: {cause}") from error
    except RayError as error:
        line = str(error).splitlines()[0]
        raise FourMError(
            f"a worker died {RETRIES + 1} times over one part ({line}); what is done is kept, look "
            "at its memory and run the command again"
        ) from error
