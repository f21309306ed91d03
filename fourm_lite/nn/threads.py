"""Threads by the size of the work: a pass over a few rows runs on one.

Unusual: every parallel region ends when its last thread does. A pass over a sentence is some 300
regions of microseconds each; where another process has one of the cores, each of them waits for the
scheduler. So passes over fewer than `ALL_FROM` rows take one thread, and larger ones all of them.

torch's own `set_num_threads` also decides for threads that are started later. Here OpenMP and MKL
are told for the calling thread alone, and told back; where a build of torch has neither, nothing
changes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ALL_FROM = 128
"""Rows from which a pass over a model's blocks takes every thread (docs/performance.md)."""


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """Runs the block on one thread where it maps few rows without gradients.

    Args:
        rows: tokens of all items together
    """
    # whether it is being compiled comes first: there the number of rows is a symbol
    one = not (torch.compiler.is_compiling() or torch.is_grad_enabled()) and rows < ALL_FROM
    before = torch.get_num_threads() if one else 1
    setters = _setters() if before > 1 else None
    if setters is None:
        yield
        return
    openmp, mkl = setters
    openmp(1)
    mkl_before = mkl(1)
    try:
        yield
    finally:
        mkl(mkl_before)
        openmp(before)


@functools.cache
def _setters() -> tuple[Callable[[int], object], Callable[[int], int]] | None:
    """What sets the calling thread's number in OpenMP and in MKL, which says what it was."""
    try:
        loaded = ctypes.CDLL(None)
        openmp = loaded.omp_set_num_threads
    except (OSError, TypeError, AttributeError):
        return None
    openmp.argtypes, openmp.restype = [ctypes.c_int], None
    return openmp, _mkl_setter()


def _mkl_setter() -> Callable[[int], int]:
    """MKL inside torch; 0 stands for as many threads as OpenMP has."""
    file = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        setter = ctypes.CDLL(str(file)).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return lambda _: 0
    setter.argtypes, setter.restype = [ctypes.c_int], ctypes.c_int
    return setter
