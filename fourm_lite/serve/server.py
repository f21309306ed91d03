"""Opens the address, then the index, then answers until it is stopped."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from fourm_lite.errors import ConfigError
from fourm_lite.search.engine import Search
from fourm_lite.serve.fields import Limits
from fourm_lite.serve.service import Service

if TYPE_CHECKING:
    from starlette.applications import Starlette

INSTALL = "serving needs: pip install starlette uvicorn python-multipart prometheus_client"
CONNECTIONS = 256
"""Open at once, most of them idle."""
LOCAL = ("localhost", "127.0.0.1", "::1")


def serve(
    opened: Callable[[], Search],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    hosts: tuple[str, ...] = (),
    limits: Limits | None = None,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves an index until the process is told to stop.

    Args:
        opened: opens the index; called once the address is known to be free
        host: the address to listen at; by default this machine alone is answered
        port: 0 for any that is free
        token: what every request must bear
        hosts: names by which the server may be called, besides its own
        limits: what a request may cost
        ready: told the address when queries are answered

    Raises:
        ConfigError: the address cannot be had, or a package is not installed
        FourMError: the index or its model cannot be opened
    """
    require_packages()
    with closing(listen(host, port)) as listener:
        service = Service(opened(), limits)
        service.warm_up()
        from fourm_lite.serve.app import build_app

        app = build_app(service, token=token, hosts=_names(host, hosts))
        number = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{number}")
        _run(app, listener, service.limits)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_packages() -> None:
    """Refuses where the extra is not installed.

    Raises:
        ConfigError: it names the command
    """
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; {INSTALL}") from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is taken, or is none of this machine
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {why}; name another --port (0: any) or --host"
        ) from error


def _names(host: str, more: tuple[str, ...]) -> tuple[str, ...]:
    """How the server may be called: only the machine's own names where it listens to itself."""
    if is_loopback(host):
        return (*LOCAL, host, *more)
    return more or ("*",)


def _run(app: Starlette, listener: socket.socket, limits: Limits) -> None:
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
        limit_concurrency=CONNECTIONS + 4 * limits.waiting, timeout_graceful_shutdown=5,
        proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
