"""The interceptor around every handler of Keek's services.

What is too much is refused first, at the least cost: its request is not even read. Callers and requests are
checked before the handler runs, domain errors become statuses, faults become
INTERNAL without their details, and every call is timed. Each kind of call has a wrapper
of its own: one for all would let streams slip through.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from keek_server import metrics
from keek_server.errors import KeekError, UnavailableError
from keek_server.rpc.admin import Authority
from keek_server.rpc.door import Door
from keek_server.rpc.drain import Drain
from keek_server.rpc.rules import RuleChecker
from keek_server.rpc.status import Status, to_status

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_PREFIX = "/keek."
_HEALTH_WATCH = "/grpc.health.v1.Health/Watch"


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of Keek's own services; health and reflection pass as they are, but for the one
    that would keep a server from stopping."""

    def __init__(
        self,
        rules: RuleChecker,
        authority: Authority | None = None,
        drain: Drain | None = None,
        door: Door | None = None,
    ) -> None:
        """
        Args:
            rules: Checks requests.
            authority: Checks callers; by default nobody may make calls that need a scope.
            drain: Knows the calls that run, for whoever stops the server.
            door: Bounds the calls that are under way; by default nothing does.
        """
        self._rules = rules
        self._authority = authority or Authority(None)
        self._drain = drain or Drain()
        self._door = door
        self._wrapped: dict[str, Handler] = {}
        self._refusing: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """See `grpc.aio.ServerInterceptor`."""
        self._drain.arrive()
        method = handler_call_details.method
        if self._door is not None and self._door.is_full(method):
            if method not in self._refusing:
                self._refusing[method] = _refusal(method, self._door)
            return self._refusing[method]
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            wrapped = await continuation(handler_call_details)
            if wrapped is not None and method.startswith(_PREFIX):
                self._wrapped[method] = wrapped = self._wrap(method, wrapped)
            elif wrapped is not None and method == _HEALTH_WATCH:
                self._wrapped[method] = wrapped = self._health_watch(method, wrapped)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), **codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream), **codec)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._upload(method, handler.stream_unary), **codec)
        raise TypeError(f"{method} is of a kind that is not guarded")

    def _unary(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Message, context: Context) -> Message:
            async with _Translated(method, context):
                with self._drain.running(method), self._inside(method, context):
                    self._admit(method, context)
                    self._rules.check(request)
                    response: Message = await inner(request, context)
            return response

        return call

    def _stream(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Message, context: Context) -> AsyncIterator[Message]:
            async with self._guarded(method, context):
                self._admit(method, context)
                self._rules.check(request)
                # A caller may leave in the middle: what the handler holds is given back then, not when
                # the garbage collector comes by.
                async with aclosing(inner(request, context)) as responses:
                    begun = False
                    while True:
                        # It is under way while it makes a message, not while that is read.
                        with self._inside(method, context, begun=begun):
                            response = await anext(responses, None)
                        if response is None:
                            break
                        begun = True
                        yield response

        return call

    def _upload(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def checked(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
            async for request in requests:
                self._rules.check(request)
                yield request

        async def call(requests: AsyncIterator[Message], context: Context) -> Message:
            async with self._guarded(method, context):
                self._admit(method, context)
                response: Message = await inner(checked(requests), context)
            return response

        return call

    def _health_watch(self, method: str, handler: Handler) -> Handler:
        # A coroutine that writes, as asyncio's handlers of streams may be.
        watch: Callable[..., Any] = handler.unary_stream  # type: ignore[assignment]

        async def call(request: Message, context: Context) -> None:
            try:
                with self._drain.running(method):
                    await watch(request, context)
            except UnavailableError as error:
                await context.abort(*to_status(error))

        return grpc.unary_stream_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @asynccontextmanager
    async def _guarded(self, method: str, context: Context) -> AsyncIterator[None]:
        async with _Translated(method, context):
            with self._drain.running(method):
                yield

    def _inside(self, method: str, context: Context, *, begun: bool = False) -> AbstractContextManager[None]:
        if self._door is None:
            return nullcontext()
        return self._door.inside(method, context.time_remaining(), begun=begun)

    def _admit(self, method: str, context: Context) -> None:
        self._authority.check(method, context.invocation_metadata() or ())


def _refusal(method: str, door: Door) -> Handler:
    """Says no to one method.

    As a handler of streams it need not wait for the request. An answer that has no message is the same for
    all kinds of calls.
    """
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    counted = metrics.labelled(metrics.rpc_seconds, method, code.name)

    async def call(_requests: AsyncIterator[Message], context: Context) -> Message:
        counted.observe(0.0)
        await context.abort(*door.refusal(method))

    return grpc.stream_unary_rpc_method_handler(call)


class _Translated:
    """Around a handler: ends its call with the status of what went wrong, and times it.

    A class, since every call has one: a context manager made of a generator costs several times as much.
    """

    __slots__ = ("_context", "_method", "_started")

    def __init__(self, method: str, context: Context) -> None:
        self._method = method
        self._context = context
        self._started = time.perf_counter()

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        code, status = (grpc.StatusCode.OK, None) if error is None else _outcome(self._method, error)
        try:
            if status is not None:
                await self._context.abort(*status)
        finally:
            timed = metrics.labelled(metrics.rpc_seconds, self._method, code.name)
            timed.observe(time.perf_counter() - self._started)


def _outcome(method: str, error: BaseException) -> tuple[grpc.StatusCode, Status | None]:
    """The code that an error counts as, and the status to end the call with; None where it ends by itself."""
    if isinstance(error, KeekError):
        status = to_status(error)
        return status[0], status
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return grpc.StatusCode.CANCELLED, None
    if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
        return grpc.StatusCode.UNKNOWN, None
    logger.error("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, (grpc.StatusCode.INTERNAL, "internal error", ())
