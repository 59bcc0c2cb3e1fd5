"""What can go wrong for a caller of Keek.

KeekError
├── ClientStateError            the client was opened twice, closed before, or is on another event loop
├── FileChangedError            a file is not any more what it was when its upload began
└── CallError                   a call failed: code, message, `reason` and what else the server said
    ├── InvalidArgumentError    the request breaks the contract, `violations` name its fields; or a bad video
    ├── NotFoundError           a video, user or service that does not exist
    ├── AlreadyExistsError      a video that has a file already
    ├── FailedPreconditionError what the server has at present lacks what the call needs
    ├── OutOfRangeError         an upload goes on behind bytes that the server does not have
    ├── UnauthenticatedError    no or wrong credentials
    ├── PermissionDeniedError   credentials that do not suffice
    ├── ResourceExhaustedError  refused at the door: wait `retry_after_s`, then call again
    ├── UnavailableError        no server, or a part of it is down; the retries were in vain
    ├── DeadlineExceededError   no answer within `timeout_s`
    ├── CallCancelledError      cancelled, by closing the client, or by a server with too many waiting
    ├── UnimplementedError      the server does not know the call: it is older than the client
    └── InternalError           a fault of the server

A status that has no class of its own here is a plain `CallError`. `__cause__` is the
original `grpc.RpcError`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import grpc
from google.protobuf.message import DecodeError

from keek import wire


class KeekError(Exception):
    """Base of all errors that the client raises on purpose."""


class ClientStateError(KeekError):
    """The client cannot be used in its present state; a mistake in the calling code."""


class FileChangedError(KeekError):
    """A file became longer, shorter or another one while it was being uploaded."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks its constraint."""

    field: str
    """Path in the request, as `interactions[3].user_id`."""
    description: str


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a server says about an error beside its code and message."""

    reason: str = ""
    """Constant for programs, as `VIDEO_NOT_FOUND`; empty when no Keek server answered."""
    domain: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    """How long to wait before the next attempt, when the server says so."""


class CallError(KeekError):
    """A call failed."""

    def __init__(self, code: grpc.StatusCode, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = details or ErrorDetails()

    @property
    def reason(self) -> str:
        """Constant for programs, as `TRUNCATED`; empty when no Keek server answered."""
        return self.details.reason

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidArgumentError(CallError):
    """The request breaks the contract and can never succeed as it is."""

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """Every field that breaks its constraint; where they are many, the first ones."""
        return self.details.violations


class NotFoundError(CallError):
    """What was named does not exist."""


class AlreadyExistsError(CallError):
    """What was to be made is there already."""


class FailedPreconditionError(CallError):
    """The server would have to be in another state, as with a release that has what the call needs."""


class OutOfRangeError(CallError):
    """An upload was to go on behind bytes that the server does not have."""


class UnauthenticatedError(CallError):
    """The server asks for credentials, or for other ones."""


class PermissionDeniedError(CallError):
    """The caller may not do this."""


class _RetryLaterError(CallError):
    @property
    def retry_after_s(self) -> float | None:
        """How long the server asks to wait before the next attempt, in seconds."""
        return self.details.retry_after_s


class ResourceExhaustedError(_RetryLaterError):
    """The server is overloaded and refused the call; it is not retried by the client."""


class UnavailableError(_RetryLaterError):
    """No server was reached, or a part that the call needs is down, also after all retries."""


class DeadlineExceededError(CallError):
    """No answer in time; whether the server did its work is not known."""


class CallCancelledError(CallError):
    """The call was cancelled before it ended."""


class UnimplementedError(CallError):
    """The server does not know the call."""


class InternalError(CallError):
    """A fault of the server."""


_ERRORS: Final[dict[grpc.StatusCode, type[CallError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}

_DETAILS_KEY: Final = "grpc-status-details-bin"


def from_rpc_error(error: grpc.RpcError) -> CallError:
    """The error of this tree for one of gRPC's, of the sync and of the asyncio stack alike."""
    code = error.code()
    # Both stacks give pairs of key and value, in containers of different types.
    metadata = cast("Iterable[tuple[str, str | bytes]] | None", error.trailing_metadata())
    return _ERRORS.get(code, CallError)(code, error.details() or "", _details(metadata or ()))


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises errors of this tree where gRPC raises its own."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _details(metadata: Iterable[tuple[str, str | bytes]]) -> ErrorDetails:
    status = next((value for key, value in metadata if key == _DETAILS_KEY), b"")
    try:
        return _parse(status if isinstance(status, bytes) else b"")
    except DecodeError:
        # Made by something between client and server. The code and message still hold, and an
        # error about the error would hide them.
        return ErrorDetails()


def _parse(status: bytes) -> ErrorDetails:
    found: dict[str, Any] = {}
    for detail in wire.Status.FromString(status).details:
        message = _DETAILS.get(detail.type_url.rpartition("/")[2])
        if message is not None:
            found[message.DESCRIPTOR.name] = message.FromString(detail.value)
    info = found.get("ErrorInfo", _NO_INFO)
    bad = found.get("BadRequest", _NO_BAD_REQUEST)
    retry = found.get("RetryInfo")
    return ErrorDetails(
        reason=info.reason,
        domain=info.domain,
        metadata={entry.key: entry.value for entry in info.metadata},
        violations=tuple(FieldViolation(v.field, v.description) for v in bad.field_violations),
        retry_after_s=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry else None,
    )


_NO_INFO: Final = wire.ErrorInfo()
_NO_BAD_REQUEST: Final = wire.BadRequest()
_DETAILS: Final = {
    "google.rpc.ErrorInfo": wire.ErrorInfo,
    "google.rpc.BadRequest": wire.BadRequest,
    "google.rpc.RetryInfo": wire.RetryInfo,
}
