"""What is answered of a file that takes more processor time than there is."""

import io
from collections.abc import Callable
from itertools import count

import pytest
from benchmarks.clips import Clip, clip_bytes

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.videos.decoding import video
from keek_server.videos.decoding.budget import CpuBudget, is_hopeless
from keek_server.videos.decoding.types import FrameShape, Job, Limits, Summary

_FRAMES = 100
_ONE_RUN = Clip(duration_s=_FRAMES / 25, width=64, height=48, key_interval=1000)
_SOME_RUNS = Clip(duration_s=_FRAMES / 25, width=64, height=48, key_interval=20)


def test_time_counts_from_the_beginning() -> None:
    times_s = iter([100.0, 102.5, 110.0])
    budget = CpuBudget(10.0, clock=lambda: next(times_s))
    assert [budget.spent, budget.spent] == [0.25, 1.0]


def test_what_makes_next_to_no_progress_is_given_up_early_and_only_that() -> None:
    assert not is_hopeless(0.2, 0.0)
    assert is_hopeless(0.25, 0.04)
    assert not is_hopeless(0.25, 0.05)
    assert not is_hopeless(0.7, 0.4)


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """Decodes where each look at the clock finds one second of `cpu_s` gone."""

    def run(clip: Clip, cpu_s: int, *, whole: bool = False) -> Summary:
        ticks = count()

        def slow(limit_s: float) -> CpuBudget:
            return CpuBudget(limit_s, clock=lambda: float(next(ticks)))

        monkeypatch.setattr(video, "CpuBudget", slow)
        content = clip_bytes(clip)
        verify = 10**9 if whole else 0
        limits = Limits(600.0, 4096, 240.0, 72_000, verify, ("h264",), cpu_s=cpu_s, memory_mb=1024)
        return video.decode_video(io.BytesIO(content), Job("video", len(content), FrameShape(16), 4, limits))[
            0
        ]

    return run


@pytest.mark.parametrize("whole", [False, True])
def test_a_long_video_of_one_run_is_taken_as_far_as_time_goes(
    decode: Callable[..., Summary], *, whole: bool
) -> None:
    summary = decode(_ONE_RUN, _FRAMES, whole=whole)
    assert len(summary.frame_times_s) == 4
    assert 2.0 < max(summary.frame_times_s) <= 3.0
    assert summary.duration_s == pytest.approx(4.0)


def test_keyframes_are_taken_where_there_is_no_time_for_more(decode: Callable[..., Summary]) -> None:
    times_s = decode(_SOME_RUNS, 100).frame_times_s
    assert len(times_s) == 4
    assert max(times_s) > 3.0


@pytest.mark.parametrize("whole", [False, True])
def test_a_video_of_which_next_to_nothing_is_seen_in_time_is_a_bomb(
    decode: Callable[..., Summary], *, whole: bool
) -> None:
    with pytest.raises(BadMediaError) as refused:
        decode(_ONE_RUN, 20, whole=whole)
    assert refused.value.reason is MediaProblem.DECODE_BOMB
