"""Building modules whose weights will come from a file: no storage, no initialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fourm_lite.errors import ConfigError, FourMError

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
