"""What the end of a child that has not answered says about its file, and what about the machine."""

import logging
import signal

from keek_server.errors import BadMediaError, MediaProblem, UnavailableError
from keek_server.videos.decoding.types import Limits
from keek_server.videos.decoding.worker import Exit

logger = logging.getLogger(__name__)

FAILS = "the decoder fails on it"
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that no file brings about, as long as there is processor time left."""
_MOST_OF_IT = 0.75
"""A child that had a processor for less of its time was not slow, but kept waiting."""
_RETRY_AFTER_S = 5.0


def ended_early(ended: Exit | None, limits: Limits, field: str) -> BadMediaError | UnavailableError:
    """Why a child ended before it had answered.

    Args:
        ended: None when it gave up its answer and went on.
        limits: Those it had.
        field: What of the request the file is, for the error.
    """
    if ended is None:
        logger.error("a decoding process hung up, and did not end")
        return BadMediaError(MediaProblem.CORRUPT, FAILS, field=field)
    # Whoever ignores SIGXCPU is killed a second later.
    killed_late = ended.code == -signal.SIGKILL and ended.cpu_s >= limits.cpu_s
    if ended.code == -signal.SIGXCPU or killed_late:
        text = f"decoding it takes more than {limits.cpu_s} s of processor time"
        return BadMediaError(MediaProblem.DECODE_BOMB, text, field=field)
    if -ended.code in _FROM_OUTSIDE:
        return UnavailableError(f"the decoding process was ended by signal {-ended.code}")
    logger.error("a decoding process ended with code %d", ended.code)
    return BadMediaError(MediaProblem.CORRUPT, FAILS, field=field)


def took_too_long(
    ended: Exit | None, limits: Limits, timeout_s: float, field: str
) -> BadMediaError | UnavailableError:
    """Why a child that was killed at its deadline had not answered.

    Args:
        ended: None when it is not known.
        limits: Those it had.
        timeout_s: The deadline.
        field: What of the request the file is, for the error.
    """
    if ended is not None and ended.cpu_s >= _MOST_OF_IT * min(limits.cpu_s, timeout_s):
        text = f"decoding it takes more than {timeout_s:g} s"
        return BadMediaError(MediaProblem.DECODE_BOMB, text, field=field)
    text = f"the server is too busy: decoding a file took more than {timeout_s:g} s"
    return UnavailableError(text, retry_after_s=_RETRY_AFTER_S)
