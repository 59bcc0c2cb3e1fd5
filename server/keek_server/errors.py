"""What can go wrong in Keek's own terms.

KeekError
├── InvalidArgumentError    a request that can never succeed as it is; names the fields
│   └── BadMediaError       a file that is no video, or no image, that can be used; says why
├── NotFoundError           a video, release or user that does not exist
├── AlreadyExistsError      what should be made is there already
├── OutOfRangeError         an offset that does not follow what is there
├── FailedPreconditionError what is asked for cannot be done in the state that things are in
├── PermissionDeniedError   the caller may not do this
├── UnavailableError        a part is down; the same call may succeed later
├── OverloadedError         refused at the door; the same call may succeed soon
├── TooLateError            its deadline would have passed before the answer; nothing was begun
└── SetupError              the program cannot start or go on as configured; for people

`keek_server.rpc.status` is the one table that maps these to gRPC status codes.
"""

from dataclasses import dataclass
from enum import StrEnum


class KeekError(Exception):
    """Base of all errors that Keek raises on purpose."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks its constraint."""

    field: str
    """Path in the request, as `interactions[3].user_id`."""
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class InvalidArgumentError(KeekError):
    """The request breaks the contract."""

    def __init__(self, violations: list[FieldViolation]) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = violations

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidArgumentError":
        """One violated field."""
        return cls([FieldViolation(field, description)])


class MediaProblem(StrEnum):
    """Why a file cannot be used."""

    NOT_A_VIDEO = "NOT_A_VIDEO"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    UNSUPPORTED_FORMAT = "UNSUPPORTED_FORMAT"
    """A video, in a container that is not taken."""
    UNSUPPORTED_CODEC = "UNSUPPORTED_CODEC"
    NO_VIDEO_STREAM = "NO_VIDEO_STREAM"
    TRUNCATED = "TRUNCATED"
    """Its end is missing."""
    CORRUPT = "CORRUPT"
    """It is damaged."""
    TOO_LONG = "TOO_LONG"
    TOO_LARGE = "TOO_LARGE"
    """In bytes or in pixels."""
    TOO_MANY_FRAMES = "TOO_MANY_FRAMES"
    """In all, or a second."""
    DECODE_BOMB = "DECODE_BOMB"
    """Decoding it takes more memory or time than its like may take."""


class BadMediaError(InvalidArgumentError):
    """An uploaded file, or the image of a query, cannot be used."""

    def __init__(self, reason: MediaProblem, description: str, *, field: str = "content") -> None:
        """
        Args:
            reason: The kind of problem, for programs.
            description: A sentence, for people.
            field: What of the request holds the file.
        """
        super().__init__([FieldViolation(field, description)])
        self.reason = reason


class NotFoundError(KeekError):
    """What was named does not exist."""


class AlreadyExistsError(KeekError):
    """What should be made exists."""


class OutOfRangeError(KeekError):
    """An offset lies beyond what is there."""


class FailedPreconditionError(KeekError):
    """It cannot be done in the state that things are in; the message says what has to change."""


class PermissionDeniedError(KeekError):
    """The caller has not shown that it may do this."""


class UnavailableError(KeekError):
    """A part that the call needs is down or late."""

    def __init__(self, message: str, *, retry_after_s: float = 0.5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    """More is asked than can be done at present."""


class TooLateError(KeekError):
    """What such calls take at present is more than the time that is left."""


class SetupError(KeekError):
    """The message says what to change; a stack trace would not help."""
