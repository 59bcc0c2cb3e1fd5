"""What can go wrong in Keek's own terms.

KeekError
├── InvalidArgumentError    a request that can never succeed as it is; names the fields
├── NotFoundError           a video, release or user that does not exist
├── UnavailableError        a part is down; the same call may succeed later
├── OverloadedError         refused at the door; the same call may succeed soon
└── SetupError              the program cannot start or go on as configured; for people

`keek_server.rpc.status` is the one table that maps these to gRPC status codes.
"""

from dataclasses import dataclass


class KeekError(Exception):
    """Base of all errors that Keek raises on purpose."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks its constraint."""

    field: str
    """Path in the request, as `interactions[3].user_id`."""
    description: str


class InvalidArgumentError(KeekError):
    """The request breaks the contract."""

    def __init__(self, violations: list[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidArgumentError":
        """One violated field."""
        return cls([FieldViolation(field, description)])


class NotFoundError(KeekError):
    """What was named does not exist."""


class UnavailableError(KeekError):
    """A part that the call needs is down or late."""

    def __init__(self, message: str, *, retry_after_s: float = 0.5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    """More is asked than can be done at present."""


class SetupError(KeekError):
    """The message says what to change; a stack trace would not help."""
