"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from fourm_lite.errors import ConfigError
from fourm_lite.nn.device import usable_device


def test_a_device_that_is_here_is_given_back():
    assert usable_device("cpu") == torch.device("cpu")
    assert usable_device(None) is None


@pytest.mark.parametrize("name", ["nonsense", "cuda:77", "hpu", "cpu:x", 3.5])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name):
    with pytest.raises(ConfigError, match="cpu"):
        usable_device(name)
