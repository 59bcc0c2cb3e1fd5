"""The one table from domain errors to gRPC status codes, with google.rpc details."""

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
        violations = [
            BadRequest.FieldViolation(field=v.field, description=v.description) for v in error.violations
        ]
        details.append(BadRequest(field_violations=violations))
    if isinstance(error, UnavailableError):
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(RetryInfo(retry_delay=delay))
    status = status_pb2.Status(
        code=code.value[0], message=str(error), details=[_pack(detail) for detail in details]
    )
    return code, str(error), ((DETAILS_KEY, status.SerializeToString()),)


def _pack(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
