"""Requests of many clients answered together: one forward pass and one product for all of them.

A thread of its own takes what waits, at most a few milliseconds after the first. While it works the
next ones gather, so that batches grow with the load and one client alone hardly waits.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fourm_lite.errors import FourMError

log = logging.getLogger(__name__)

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Job(Generic[Question, Answer]):
    question: Question
    answer: Future[Answer] = field(default_factory=Future)


class Batcher(Generic[Question, Answer]):
    """Answers questions in batches, in the order in which they came.

    Args:
        answer_all: as many answers as questions; may refuse all of them for the sake of one
        most: questions of a batch
        window: seconds that the first of a batch waits for others
        seen: told the size of every batch
    """

    def __init__(
        self,
        answer_all: Callable[[Sequence[Question]], Sequence[Answer]],
        *,
        most: int,
        window: float,
        seen: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._answer_all, self._most, self._window, self._seen = answer_all, most, window, seen
        self._waiting: queue.SimpleQueue[_Job[Question, Answer] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fourm-lite batches", daemon=True)
        self._thread.start()

    def submit(self, question: Question) -> Future[Answer]:
        """The answer to come; one that is cancelled before its turn is never worked on."""
        job: _Job[Question, Answer] = _Job(question)
        self._waiting.put(job)
        return job.answer

    def close(self) -> None:
        """Ends the thread when the questions that wait are answered."""
        self._waiting.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (jobs := self._gathered()) is not None:
            alive = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if alive:
                self._seen(len(alive))
                self._answer(alive)

    def _gathered(self) -> list[_Job[Question, Answer]] | None:
        """The next batch; None at the end."""
        first = self._waiting.get()
        jobs = [] if first is None else [first]
        until = time.monotonic() + self._window
        while first is not None and len(jobs) < self._most:
            try:
                job = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._waiting.put(None)
                break
            jobs.append(job)
        return jobs or None

    def _answer(self, jobs: Sequence[_Job[Question, Answer]]) -> None:
        """Answers a batch; a question that spoils it is found by halving, and refused alone."""
        try:
            answers = self._answer_all([job.question for job in jobs])
        except Exception as error:
            if len(jobs) > 1:
                middle = len(jobs) // 2
                self._answer(jobs[:middle])
                self._answer(jobs[middle:])
                return
            if not isinstance(error, FourMError):
                log.exception("a request could not be answered")
            jobs[0].answer.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)
