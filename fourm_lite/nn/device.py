"""Where a network is and who computes it: its device, modules without storage yet, threads.

Unusual: every parallel region of torch ends when its last thread does. A pass over a sentence is
some 300 regions of microseconds each; where another process has one of the cores, each of them
waits for the scheduler. So passes over fewer than `ALL_FROM` rows take one thread, and larger ones
all. torch's own `set_num_threads` also decides for threads that are started later. Here OpenMP and
MKL are set for the calling thread alone, and set back; where a build of torch has neither, nothing
changes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fourm_lite.errors import ConfigError, FourMError


def usable_device(device: torch.device | str | None) -> torch.device | None:
    """The device of that name; None stays None.

    Raises:
        ConfigError: torch knows no such device, or there is none here

    >>> usable_device("cpu")
    device(type='cpu')
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # torch raises RuntimeError, AssertionError, NotImplementedError or ImportError for one fault
    except Exception as error:
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the device {device!r} cannot be used ({reason[:160]}); torch has {', '.join(here)} "
            "here"
        ) from error
    return found


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
    """The setters of the calling thread's number in OpenMP and MKL, which returns the former."""
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


_DRAWN = (torch.randn, torch.rand)
_FILLED = (torch.Tensor.normal_, torch.Tensor.uniform_)


class _NoInit(TorchFunctionMode):
    """Answers what draws numbers, and every function of torch.nn.init, with a tensor as it is.

    On the meta device there is nothing to fill, and the first random number or sum there imports
    900 modules of torch: 5 s and 160 MB.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in _FILLED:
            return args[0]
        if func in _DRAWN:
            kwargs.pop("generator", None)
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def without_storage() -> Iterator[None]:
    """Modules that are built inside have shapes and names but no values.

    >>> with without_storage():
    ...     layer = torch.nn.Linear(2, 3)
    >>> layer.weight.device
    device(type='meta')

    Raises:
        ConfigError: a size or name that no module can have (they come from files)
    """
    try:
        with torch.device("meta"), _NoInit():
            yield
    except FourMError:
        raise
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot build the modules of this config: {error!s:.200}") from error


def is_without_storage() -> bool:
    """Whether modules are being built without storage: a table need not be computed then."""
    return torch.get_default_device().type == "meta"
