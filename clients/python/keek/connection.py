"""What the sync and the asyncio client share: settings and the states unopened, opened, closed."""

import abc
import enum
import threading
from collections.abc import Mapping
from typing import Final, Generic, Protocol, TypeVar

import grpc

from keek.channel import (
    DEFAULT_RETRY,
    DEFAULT_TIMEOUTS,
    RetryPolicy,
    Timeouts,
    bearer_metadata,
    channel_options,
)
from keek.errors import ClientStateError


class ClientState(enum.Enum):
    """A client opens at its first call or `with`, closes once, and does not open again."""

    UNOPENED = enum.auto()
    OPENED = enum.auto()
    CLOSED = enum.auto()


class PageRequest(Protocol):
    """A request for one page, of any list."""

    page_token: str


class PageResponse(Protocol):
    """One page, of any list."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""


def turn_page(request: PageRequest, response: PageResponse) -> bool:
    """Makes `request` ask for the page after `response`; False when there is none."""
    request.page_token = response.next_page_token
    return bool(request.page_token)


Channel = TypeVar("Channel")
Stubs = TypeVar("Stubs")


class BaseConnection(abc.ABC, Generic[Channel, Stubs]):
    """A channel that is opened late and closed once, and the stubs on it."""

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        admin_token: str | None = None,
        retry: RetryPolicy | None = DEFAULT_RETRY,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        options: Mapping[str, int | str] | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            target: `host:port`; a DNS name with several addresses uses all of them in turn. Any
                gRPC target is taken, as `ipv4:10.0.0.1:50051,10.0.0.2:50051`.
            credentials: For TLS, as `grpc.ssl_channel_credentials()`; None speaks plain text.
            admin_token: For calls that need it, those that change which release serves, or an
                experiment; sent with no others. Without TLS whoever can read the network can read it.
            retry: When calls are made again; None means never.
            timeouts: Deadlines of calls that give no `timeout_s`.
            options: gRPC channel arguments by name, over `keek.channel.DEFAULT_OPTIONS`. The proxy of
                `http_proxy` and its kin, which gRPC takes, is not asked for this machine (`localhost`,
                `127.…`, `[::1]`).

        Raises:
            ValueError: `admin_token` is empty, or has characters that no token has.
        """
        self._target: Final = target
        self._credentials: Final = credentials
        self._admin: Final = None if admin_token is None else bearer_metadata(admin_token)
        self._timeouts: Final = timeouts
        self._retry: Final = retry
        self._options: Final = channel_options(target, retry, options)
        self._opened: tuple[Channel, Stubs] | None = None
        self._closed = False
        self._lock: Final = threading.Lock()

    @property
    def target(self) -> str:
        """Where the server is."""
        return self._target

    @property
    def state(self) -> ClientState:
        """Unopened, opened or closed."""
        if self._closed:
            return ClientState.CLOSED
        return ClientState.UNOPENED if self._opened is None else ClientState.OPENED

    @property
    def _stubs(self) -> Stubs:
        opened = self._opened
        return self._open() if opened is None else opened[1]

    @abc.abstractmethod
    def _connect(self) -> tuple[Channel, Stubs]:
        """A new channel, and the stubs on it."""

    def _require_usable(self) -> None:
        if self._closed:
            raise ClientStateError("the client is closed; make a new one")

    def _enter(self) -> None:
        if self.state is ClientState.OPENED:
            raise ClientStateError("the client is open already; enter it once, before its first call")
        self._open()

    def _open(self) -> Stubs:
        with self._lock:
            self._require_usable()
            if self._opened is None:
                self._opened = self._connect()
            return self._opened[1]

    def _shut(self) -> Channel | None:
        """Closed from now on; gives the channel that is left to close, once."""
        with self._lock:
            opened, self._opened, self._closed = self._opened, None, True
            return opened[0] if opened is not None else None
