"""Knobs of the clients' test server: what happens to an attempt instead of its answer."""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2


@dataclass(slots=True)
class Fault:
    """What happens to one attempt instead of its answer."""

    code: grpc.StatusCode | None = None
    message: str = "injected"
    details: Sequence[Message] = ()
    delay_s: float = 0.0
    """How long the attempt takes first."""


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass(slots=True)
class Faults:
    """Knobs, and what arrived at the server."""

    queued: defaultdict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    attempts: Counter[str] = field(default_factory=Counter)
    requests: defaultdict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))
    cancelled: list[str] = field(default_factory=list)
    fail_stream_after: int | None = None
    """Pages after which a stream fails with INTERNAL."""
    pause_s: float = 0.0
    """Between the pages of a stream, or the chunks of an upload."""
    cut_uploads: deque[tuple[int, Fault]] = field(default_factory=deque)
    """The next calls of UploadVideo end like this, when so many bytes have arrived in the call."""
    lost_acknowledgements: int = 0
    """The next uploads, deletions or changes of experiments that are done are answered with UNAVAILABLE."""
    uploaded_bytes: int = 0
    """All that has arrived, more than once or not."""
    gate: asyncio.Event = field(default_factory=_open_gate)
    """While it is shut, no attempt gets any further than its arrival."""
    hold_uploads_at: int | None = None
    """An upload of which so many bytes are there stands still until this is None again."""
    refused_uploads: deque[Fault] = field(default_factory=deque)
    """The next calls of UploadVideo end like this, when everything has arrived."""

    def add(self, method: str, *faults: Fault) -> None:
        """The next attempts of `method` go like this."""
        self.queued[method].extend(faults)

    async def strike(
        self, method: str, request: Message, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Counts an attempt, and lets happen to it what is queued."""
        self.attempts[method] += 1
        self.requests[method].append(request)
        await self.gate.wait()
        if not self.queued[method]:
            return
        fault = self.queued[method].popleft()
        try:
            await asyncio.sleep(fault.delay_s)
        except asyncio.CancelledError:
            self.cancelled.append(method)
            raise
        if fault.code is not None:
            await context.abort(fault.code, fault.message, status_metadata(fault))


def status_metadata(fault: Fault) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata with a google.rpc.Status, as a server sends it."""
    if not fault.details or fault.code is None:
        return ()
    status = status_pb2.Status(code=fault.code.value[0], message=fault.message)
    for detail in fault.details:
        status.details.add().Pack(detail)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def error_info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="keek", metadata=metadata)


def bad_request(**violations: str) -> error_details_pb2.BadRequest:
    """Violations by field; `__` stands for a dot."""
    fields = [
        error_details_pb2.BadRequest.FieldViolation(field=name.replace("__", "."), description=text)
        for name, text in violations.items()
    ]
    return error_details_pb2.BadRequest(field_violations=fields)


def retry_info(delay_s: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(delay_s * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def page_of(names: Sequence[str], size: int, token: str) -> tuple[Sequence[str], str]:
    """A page of `names`, and the token of the next one."""
    start = int(token or 0)
    end = start + (size or 10)
    return names[start:end], str(end) if end < len(names) else ""
