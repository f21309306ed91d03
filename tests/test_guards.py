"""The guards of conftest.py do guard."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize("host", ["203.0.113.1", "example.org", "2001:db8::1"])
def test_reaching_for_another_machine_fails_a_test(host):
    with pytest.raises(pytest.fail.Exception, match="no network"):
        socket.create_connection((host, 80), timeout=1)


def test_no_handler_of_the_code_under_test_hides_a_failed_guard():
    assert not issubclass(pytest.fail.Exception, Exception)


def test_this_machine_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), timeout=5)
        client.close()
