"""Changes of which release serves, made alike for both clients."""

import uuid
from typing import Final, TypedDict, TypeVar

from keek.v1.release_service_pb2 import (
    ActivateReleaseRequest,
    EndTrialRequest,
    RollbackReleaseRequest,
    StartTrialRequest,
)

DEFAULT_WAIT_S: Final = 30.0
"""How long the server waits for the others where a call gives no `wait_s`, as the contract has it."""

MAX_DIFF_USERS: Final = 100
"""Users whose feeds one call compares."""

ChangeRequest = TypeVar(
    "ChangeRequest", ActivateReleaseRequest, RollbackReleaseRequest, StartTrialRequest, EndTrialRequest
)


class ChangeOptions(TypedDict, total=False):
    """What may be said about a change beside what it is."""

    reason: str
    """For the history."""
    wait_s: float
    """How long to wait until every server has carried out the change; 0 means 30."""
    request_id: str | None
    """A UUID that the caller keeps, to repeat a failed call later; made anew when None."""
    timeout_s: float | None
    """The deadline; `Timeouts.change_release_s` and `wait_s` by default."""


def change_of(request: ChangeRequest, options: ChangeOptions) -> ChangeRequest:
    """`request`, with what the options say and a `request_id`, made unless it is given."""
    # Type checkers say so before; a misspelt option must not be none at run time.
    if unknown := options.keys() - ChangeOptions.__annotations__.keys():
        raise TypeError(f"{sorted(unknown)[0]!r} is no option of a change")
    request.reason = options.get("reason", "")
    request.wait_s = options.get("wait_s", 0.0)
    request.request_id = options.get("request_id") or str(uuid.uuid4())
    return request


def change_timeout_s(options: ChangeOptions, own_s: float) -> float:
    """The deadline of a change that gives none: its own time, and what it waits for the servers."""
    return own_s + (options.get("wait_s") or DEFAULT_WAIT_S)
