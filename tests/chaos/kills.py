"""Chains of kills: each verb is killed again and again, then left alone, and must end as if not.

A child is forked after all imports, so a kill costs what the verb had done and little more. It is
killed (SIGKILL) before its n-th change of a file, counted by Python's audit hook, or after a random
time, which also meets what the engines beneath do by themselves.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chaos.cases import CASES, OUT, quiet, result

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHAIN = 8
"""Kills in a chain, at most."""


@dataclass
class Count:
    """What came of one verb's chains."""

    kills: int = 0
    chains: int = 0
    other: int = 0  # chains that did not end as the uninterrupted run
    refused: int = 0  # runs that ended in an error of their own
    seconds: float = 0.0


@dataclass(frozen=True)
class Expected:
    """An uninterrupted run: its result, its changes of files and its time."""

    result: dict[str, str]
    changes: int
    seconds: float


class Killer:
    """An audit hook that ends the process before its n-th change of a file."""

    def __init__(self, last: int) -> None:
        self.last, self.seen = last, 0
        self._lock = threading.Lock()

    def __call__(self, event: str, words: tuple[Any, ...]) -> None:
        """Counts."""
        if event == "open":
            path, _, flags = words
            if not (isinstance(flags, int) and flags & WRITING) or str(path).startswith("/dev"):
                return
        elif event not in CHANGES:
            return
        with self._lock:
            self.seen += 1
            if self.seen == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def in_child(folder: Path, work: Callable[[], Any]) -> tuple[int, Callable[[], Any]]:
    """Forks a process that works in a folder; its number, and a way to wait for its answer."""
    read, write = os.pipe()
    number = os.fork()
    if number == 0:
        status = 1
        try:
            os.close(read)
            os.chdir(folder)
            quiet()
            answer = json.dumps(work()).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(answer)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)

    def wait() -> Any:
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(number, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL:
            return None
        if code:
            raise RuntimeError((folder / "log").read_text()[-2000:])
        return json.loads(answer)

    return number, wait


def run(name: str, inputs: Path, last: int = 0) -> int:
    """A case in this process; returns how often it changed a file."""
    killer = Killer(last)
    sys.addaudithook(killer)
    CASES[name].run(inputs)
    return killer.seen


def expected(name: str, inputs: Path, folder: Path) -> Expected:
    """What an uninterrupted run ends in."""
    folder.mkdir()
    start = time.monotonic()
    changes = in_child(folder, lambda: run(name, inputs))[1]()
    seconds = time.monotonic() - start
    found = in_child(folder, lambda: result(name))[1]()
    shutil.rmtree(folder)
    return Expected(found, changes, seconds)


def chain(
    name: str, inputs: Path, folder: Path, whole: Expected, rng: random.Random, most: int
) -> tuple[int, list[str]]:
    """Kills a case up to `most` times, then lets it end; the kills, and what differs."""
    folder.mkdir()
    kills = 0
    for _ in range(most):
        late = rng.random() < CASES[name].late
        last = 0 if late else rng.randint(1, whole.changes)
        number, wait = in_child(folder, lambda last=last: run(name, inputs, last))
        if late:
            time.sleep(rng.uniform(0, whole.seconds))
            os.kill(number, signal.SIGKILL)
        if wait() is None:
            kills += 1
        else:
            break
    in_child(folder, lambda: run(name, inputs))[1]()
    found = in_child(folder, lambda: result(name))[1]()
    left = [str(p) for p in (folder / OUT).rglob("*.tmp")]
    keys = found.keys() | whole.result.keys()
    differing = [key for key in sorted(keys) if found.get(key) != whole.result.get(key)]
    if not left and not differing:
        shutil.rmtree(folder)
    return kills, [*left, *differing]


def kill_all(
    inputs: Path, work: Path, kills: int, seed: int, say: Callable[[str], None]
) -> dict[str, Count]:
    """So many kills over all verbs, each by its share."""
    total = sum(case.share for case in CASES.values())
    counts = {}
    for name, case in CASES.items():
        rng = random.Random(f"{seed} {name}")
        count, goal = Count(), -(-kills * case.share // total)
        start = time.monotonic()
        whole = expected(name, inputs, work / "whole")
        while count.kills < goal:
            folder = work / f"{name.split()[0]}-{count.chains}"
            most = rng.randint(1, min(CHAIN, goal - count.kills))
            try:
                done, differing = chain(name, inputs, folder, whole, rng, most)
            except RuntimeError as error:
                count.refused += 1
                say(f"{name}, chain {count.chains} (kept in {folder}): {error}")
                done, differing = most, []
            if differing:
                count.other += 1
                say(f"{name}, chain {count.chains} (kept in {folder}) differs: {differing[:8]}")
            count.kills += done
            count.chains += 1
        count.seconds = round(time.monotonic() - start, 1)
        counts[name] = count
        say(f"{name}: {asdict(count)}, {whole.changes} changes of files a run")
    return counts
