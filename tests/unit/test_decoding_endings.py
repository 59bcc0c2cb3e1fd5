"""Whose fault it is that a child has not answered."""

import signal

import pytest

from keek_server.errors import BadMediaError, MediaProblem, UnavailableError
from keek_server.videos.decoding.endings import ended_early, took_too_long
from keek_server.videos.decoding.types import Limits
from keek_server.videos.decoding.worker import Exit

_LIMITS = Limits(600.0, 4096, 240.0, 72_000, 10**9, ("h264",), cpu_s=20, memory_mb=1024)


@pytest.mark.parametrize(
    ("code", "cpu_s", "reason"),
    [
        (-signal.SIGXCPU, 20.4, MediaProblem.DECODE_BOMB),
        (-signal.SIGKILL, 22.0, MediaProblem.DECODE_BOMB),
        (-signal.SIGKILL, 19.0, None),
        (-signal.SIGTERM, 22.0, None),
        (-signal.SIGSEGV, 1.0, MediaProblem.CORRUPT),
        (0, 1.0, MediaProblem.CORRUPT),
    ],
)
def test_an_early_end_is_the_files_fault_unless_the_child_was_killed(
    code: int, cpu_s: float, reason: MediaProblem | None
) -> None:
    error = ended_early(Exit(code, cpu_s), _LIMITS, "chunk")
    assert (error.reason if isinstance(error, BadMediaError) else None) is reason
    assert isinstance(error, BadMediaError | UnavailableError)


@pytest.mark.parametrize(
    ("cpu_s", "timeout_s", "bomb"),
    [(14.9, 30.0, False), (15.0, 30.0, True), (5.0, 10.0, False), (8.0, 10.0, True)],
)
def test_a_late_answer_is_the_files_fault_when_a_processor_worked_at_it(
    cpu_s: float, timeout_s: float, *, bomb: bool
) -> None:
    error = took_too_long(Exit(-signal.SIGKILL, cpu_s), _LIMITS, timeout_s, "chunk")
    assert isinstance(error, BadMediaError if bomb else UnavailableError)
    assert isinstance(took_too_long(None, _LIMITS, timeout_s, "chunk"), UnavailableError)
