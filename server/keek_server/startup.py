"""Waiting, at start, for what the server depends on."""

import asyncio
from collections.abc import Awaitable, Callable

from keek_server.errors import SetupError

_PAUSE_S = 0.2
_ATTEMPT_S = 2.0


async def wait_until_ready(
    what: str,
    check: Callable[[], Awaitable[object]],
    errors: tuple[type[Exception], ...],
    *,
    timeout_s: float,
) -> None:
    """Calls `check` until it returns something true.

    Args:
        what: For the message, as "Redis at redis://... (KEEK_REDIS_URL)".
        check: Raises one of `errors`, or returns something false, while it is not ready.
        errors: What a check may raise, beside OSError and TimeoutError.
        timeout_s: How long to go on.

    Raises:
        SetupError: When it was not ready in time; says what the last attempt met.
    """
    last: BaseException | str = "not ready"
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    async with asyncio.timeout(_ATTEMPT_S):
                        if await check():
                            return
                except errors as error:
                    last = error
                except OSError as error:
                    last = error
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise SetupError(f"no {what} within {timeout_s:g} s: {last or type(last).__name__}") from None
