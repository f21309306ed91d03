"""Where a network runs: a device's name, checked before anything is read."""

from __future__ import annotations

import torch

from fourm_lite.errors import ConfigError


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
