"""The connection to Milvus.

pymilvus is imported by the first call: it takes more than a second and about 100 MiB.
"""

import functools
import importlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc

from keek_server.errors import SetupError, UnavailableError

_CONNECT_S: Final = 5.0
_CHANNEL: Final = {
    # One that was gone for long is found again at once, not within two minutes.
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.use_local_subchannel_pool": 1,
}
_DOTENV: Final = "PYTHON_DOTENV_DISABLED"


class Connection:
    """Made by the first call, which may come from any thread."""

    def __init__(self, url: str, *, deadline_s: float, token: str = "") -> None:
        """
        Args:
            url: See `Settings.milvus_url`.
            deadline_s: For one call.
            token: See `Settings.milvus_token`.
        """
        self.deadline_s = deadline_s
        self._url = url
        self._token = token
        self._client: Any = None
        self._connecting = threading.Lock()

    def close(self) -> None:
        """Closes it; the next call would make another one."""
        with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def calls(self, what: str) -> Iterator[Any]:
        """The client, for calls that each have a timeout; its errors become Keek's own.

        Args:
            what: What is done, for the messages of errors.

        Raises:
            UnavailableError: When Milvus is gone, late or refuses.
            SetupError: When it cannot be reached as configured.
        """
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            client = self._client
        try:
            yield client
        except (pymilvus().MilvusException, grpc.RpcError) as error:
            raise UnavailableError(f"Milvus does not {what}: {_reason(error)}") from error

    def _connect(self) -> Any:
        module = pymilvus()
        try:
            # Of its own: pymilvus never closes one that may be shared.
            return module.MilvusClient(
                self._url,
                token=self._token,
                timeout=min(self.deadline_s, _CONNECT_S),
                dedicated=True,
                grpc_options=_CHANNEL,
            )
        except module.exceptions.ConnectionConfigException as error:
            # Milvus Lite does not say why; mostly another process has the file.
            raise SetupError(f"cannot open Milvus: {_reason(error)} (KEEK_MILVUS_URL)") from error
        except (module.MilvusException, grpc.RpcError) as error:
            raise UnavailableError(f"Milvus cannot be reached: {_reason(error)}") from error


@functools.cache
def pymilvus() -> Any:
    """The module, without its side effects.

    Raises:
        SetupError: When it is not installed.
    """
    # It would bring variables of any `.env` nearby into the environment.
    before = os.environ.get(_DOTENV)
    os.environ[_DOTENV] = "1"
    try:
        module = importlib.import_module("pymilvus")
    except ImportError as error:
        raise SetupError("Milvus needs pymilvus: pip install 'keek[milvus]'") from error
    finally:
        del os.environ[_DOTENV]
        if before is not None:
            os.environ[_DOTENV] = before
    # It logs each error that it raises, with a stack trace, through handlers of its own.
    for name in ("pymilvus", "pymilvus.milvus_client", "pymilvus.bulk_writer"):
        own = logging.getLogger(name)
        own.handlers.clear()
        own.setLevel(logging.CRITICAL)
        own.propagate = True
    return module


def _reason(error: Any) -> str:
    """What an error says, in one line."""
    text = error.details() if isinstance(error, grpc.Call) else getattr(error, "message", "") or str(error)
    return (text or type(error).__name__).partition("\n")[0]
