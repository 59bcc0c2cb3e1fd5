"""The one table from domain errors to gRPC status codes, with google.rpc details.

All of it travels in the metadata behind a call, of which gRPC takes 8 KiB: of what is longer the beginning is
told, and how much was left out.
"""

from collections.abc import Iterable
from itertools import accumulate
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from keek_server.errors import (
    AlreadyExistsError,
    BadMediaError,
    FailedPreconditionError,
    InvalidArgumentError,
    KeekError,
    NotFoundError,
    OutOfRangeError,
    OverloadedError,
    PermissionDeniedError,
    SetupError,
    TooLateError,
    UnavailableError,
)

_CODES: tuple[tuple[type[KeekError], grpc.StatusCode, str], ...] = (
    # The first that fits: subclasses stand before their bases.
    (InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS"),
    (NotFoundError, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
    (OutOfRangeError, grpc.StatusCode.OUT_OF_RANGE, "OUT_OF_RANGE"),
    (FailedPreconditionError, grpc.StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION"),
    (PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
    (TooLateError, grpc.StatusCode.DEADLINE_EXCEEDED, "TOO_LATE"),
    (SetupError, grpc.StatusCode.FAILED_PRECONDITION, "SETUP"),
    (KeekError, grpc.StatusCode.INTERNAL, "INTERNAL"),
)
_DOMAIN = "keek"
DETAILS_KEY = "grpc-status-details-bin"

_MESSAGE_BYTES: Final = 800
"""In UTF-8. It is sent twice: with three bytes for each that is not plain ASCII, and again in base64."""
_VIOLATIONS_BYTES: Final = 3000
_FIELD_BYTES: Final = 500
_DESCRIPTION_BYTES: Final = 1000
_FRAMING_BYTES: Final = 3
"""What a violation takes beside its own bytes: its tag, and a length of two bytes."""

Trailers = tuple[tuple[str, str | bytes], ...]

Status = tuple[grpc.StatusCode, str, Trailers]
"""How a call ends: its code, message and trailing metadata."""


def to_status(error: KeekError) -> Status:
    """What says `error`."""
    code, reason = next((code, reason) for kind, code, reason in _CODES if isinstance(error, kind))
    if isinstance(error, BadMediaError):
        reason = error.reason.value
    details: list[Message] = [ErrorInfo(reason=reason, domain=_DOMAIN)]
    if isinstance(error, InvalidArgumentError):
        details.append(BadRequest(field_violations=_first_violations(error)))
    if isinstance(error, UnavailableError):
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(RetryInfo(retry_delay=delay))
    message = _message(error)
    status = status_pb2.Status(
        code=code.value[0], message=message, details=[_pack(detail) for detail in details]
    )
    return code, message, ((DETAILS_KEY, status.SerializeToString()),)


def _first_violations(error: InvalidArgumentError) -> list[BadRequest.FieldViolation]:
    first = [
        BadRequest.FieldViolation(
            field=_cut(violation.field, _FIELD_BYTES),
            description=_cut(violation.description, _DESCRIPTION_BYTES),
        )
        for violation in error.violations
    ]
    return first[: _fitting((each.ByteSize() + _FRAMING_BYTES for each in first), _VIOLATIONS_BYTES)]


def _message(error: KeekError) -> str:
    if not isinstance(error, InvalidArgumentError):
        return _cut(str(error), _MESSAGE_BYTES)
    texts = [str(violation) for violation in error.violations]
    count = _fitting((len(f"{text}; ".encode()) for text in texts), _MESSAGE_BYTES)
    message = _cut("; ".join(texts[:count]), _MESSAGE_BYTES)
    return f"{message}; and {len(texts) - count} more" if count < len(texts) else message


def _fitting(sizes: Iterable[int], most: int) -> int:
    """How many fit, of things of these sizes that come in turn; one at least."""
    return max(1, sum(total <= most for total in accumulate(sizes)))


def _cut(text: str, most: int) -> str:
    """The text, or its beginning of about `most` bytes."""
    content = text.encode()
    return text if len(content) <= most else f"{content[:most].decode(errors='ignore')}..."


def _pack(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
