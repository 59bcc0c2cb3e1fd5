"""The port that workers share: taken once, and kept while they come and go."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from keek_server.errors import SetupError


@contextmanager
def reserved_port(address: str, *, setting: str = "KEEK_LISTEN") -> Iterator[int]:
    """Takes a port for this process's workers alone, as long as the block runs; yields its number.

    Args:
        address: host:port; port 0 takes a free one.
        setting: What says so.

    Raises:
        SetupError: When somebody has it, another server with workers among them.
    """
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        try:
            # Before there is an event loop's work to block.
            found = socket.getaddrinfo(host.strip("[]") or None, int(port), type=socket.SOCK_STREAM)
            number = int(port)
            for family, where in dict.fromkeys((family, where) for family, _, _, _, where in found):
                held = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                number = _hold(held, (where[0], number, *where[2:]))
        except (OSError, ValueError, OverflowError) as error:
            raise SetupError(f"cannot listen on {address}: {error} ({setting})") from error
        yield number


def with_port(address: str, port: int) -> str:
    """The same host:port with the number that was taken for it."""
    return f"{address.rpartition(':')[0]}:{port}"


def _hold(held: socket.socket, where: tuple[object, ...]) -> int:
    """Binds for oneself alone, and then lets in whoever of the same user shares ports."""
    if held.family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # Connections that have just ended do not keep the port, but a listener does, whether it shares or not.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(where)
    # From here on the kernel refuses it to others who do not share. It hands connections to listeners only.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    number: int = held.getsockname()[1]
    return number
