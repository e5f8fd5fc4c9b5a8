"""Serve the studio on an address of this machine."""

import socket
from collections.abc import Generator
from contextlib import contextmanager
from errno import EADDRINUSE
from ipaddress import ip_address
from threading import Thread
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from retcon.errors import InvalidSetting

if TYPE_CHECKING:
    from uvicorn import Server

PORT = 8765


def bound(host: str, port: int | None) -> socket.socket:
    """A socket on an address; on a free port, where none was named and the usual one is taken.

    Raises:
        InvalidSetting: the address is not this machine's, or the port that was named is taken.
    """
    try:
        return _bound(host, PORT if port is None else port)
    except OSError as error:
        if error.errno != EADDRINUSE:
            raise InvalidSetting(
                f"The studio cannot be served on {host}, port {port or PORT}: "
                f"{error.strerror or error}. --host is an address of this machine, and not every "
                f"user may take a --port below 1024."
            ) from error
        if port is None:
            return _bound(host, 0)
        raise InvalidSetting(
            f"Port {port} of {host} is taken by another program. Give another --port, or leave it "
            f"out."
        ) from error


def address(listening: socket.socket) -> str:
    """The URL that a socket answers to."""
    host, port, *_ = listening.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def open_to_others(listening: socket.socket) -> bool:
    """True if other machines can reach it."""
    return not ip_address(listening.getsockname()[0]).is_loopback


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer requests until the process is told to end."""
    _server(app).run(sockets=[listening])


@contextmanager
def served(app: Starlette, listening: socket.socket) -> Generator[None, None, None]:
    """Answer requests in a thread while the block runs."""
    server = _server(app)
    thread = Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def _server(app: Starlette) -> "Server":
    import uvicorn

    # Pages listen to the worker for as long as they are open: they are not waited for.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    return uvicorn.Server(config)


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening
