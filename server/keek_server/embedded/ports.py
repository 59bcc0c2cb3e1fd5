"""Ports for children: free, and likely to stay theirs while they restart."""

import random
import socket

from keek_server.errors import SetupError

HOST = "127.0.0.1"
_PORTS = range(20_000, 32_000)
_TRIES = 100


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on.

    From below the range that Linux gives to outgoing connections (32768 and up): none of them
    takes it while a child restarts, nor can a client that retries on it connect to itself.

    Raises:
        SetupError: none was found.
    """
    for port in random.sample(_PORTS, _TRIES):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise SetupError(f"no free port on {HOST} between {_PORTS.start} and {_PORTS.stop}")
