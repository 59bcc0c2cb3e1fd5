"""Decodes what is needed of a track, and counts what is damaged."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import av.logging
from av.error import FFmpegError
from av.video.frame import VideoFrame

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.videos.decoding.budget import FEWEST_FOUND, OVER, THRIFTY, CpuBudget, is_hopeless
from keek_server.videos.decoding.track import Track, VideoPacket, check_size, max_pixels
from keek_server.videos.decoding.types import Limits

_DAMAGE_TOLERANCE = 0.002
"""Share of damaged frames in a long recording that nobody would refuse; in a short one, none."""
_MARKS_DAMAGE = {"h264", "mpeg4"}
"""Decoders that mark each damaged frame; of others an error that is logged counts."""
_EPSILON_S = 1e-4


def evenly_spaced(track: Track, count: int) -> list[float]:
    """The middles of `count` equal parts of the video, as presentation times in seconds."""
    part_s = track.duration_s / count
    return [track.start_s + (i + 0.5) * part_s for i in range(count)]


def cheap_moments(track: Track, count: int) -> list[float]:
    """Like `evenly_spaced`, but at a keyframe where a part has one: nothing else is decoded for it."""
    keys = sorted(t for t, packet in zip(track.times_s, track.packets, strict=True) if packet.is_keyframe)
    half_s = track.duration_s / count / 2
    moments = []
    for middle_s in evenly_spaced(track, count):
        near = bisect_left(keys, middle_s)
        nearest = min(keys[max(0, near - 1) : near + 1], key=lambda key: abs(key - middle_s), default=None)
        snaps = nearest is not None and abs(nearest - middle_s) < half_s
        moments.append(nearest if snaps and nearest is not None else middle_s)
    return moments


class _Run(NamedTuple):
    """What to decode in one go."""

    start: int
    """The packet to begin with, a keyframe."""
    targets: list[int]
    """Those whose pictures are wanted."""


class FrameReader:
    """Decodes one track, once, forwards, from its first keyframe on.

    What lies before that refers to pictures that are not there, as in what was recorded from a
    broadcast; a decoder would make it up, or call it damaged.
    """

    def __init__(self, track: Track, limits: Limits, budget: CpuBudget) -> None:
        self._track = track
        self._limits = limits
        self._budget = budget
        self._keys = [i for i, packet in enumerate(track.packets) if packet.is_keyframe]
        self._first = self._keys[0] if self._keys else 0
        self._done = 0
        self._needed = 0
        """Packets to decode for what is wanted; 0 where it can be had for less."""
        self.stopped_early = False
        """Whether pictures were left out, because finding them took too much time."""
        self._context = track.stream.codec_context
        self._context.thread_count = 1
        self._context.options = {"max_pixels": max_pixels(limits)}
        self._base = float(track.stream.time_base or 0)
        self._last_s = track.start_s - 1 / track.frame_rate
        # Pictures that are shown before the keyframe they follow need others before it.
        self._ignored_before_s = track.times_s[self._first] - _EPSILON_S if self._keys else -float("inf")
        self._damaged = 0
        self._tolerated = int(len(track.packets) * _DAMAGE_TOLERANCE)

    def read_all(self, moments_s: Sequence[float]) -> Iterator[tuple[float, VideoFrame]]:
        """Decodes every frame, and yields those that are shown at the moments, each once, with its time.

        Args:
            moments_s: Presentation times, ascending.

        Raises:
            BadMediaError: CORRUPT, when more of it is damaged than is tolerated; TOO_LARGE, when
                pictures become larger than their header says and than is allowed.
        """
        wanted_s = [self._track.times_s[target] for target in self._shown_at(moments_s)]
        packets = self._track.packets[self._first :]
        self._needed = len(packets)
        return self._pick(self._while_affordable(packets, OVER), wanted_s)

    def read_some(self, moments_s: Sequence[float]) -> Iterator[tuple[float, VideoFrame]]:
        """The same frames as `read_all` yields, but jumps over what they do not need.

        When much of the processor time is used up, the nearest keyframes before them instead.
        """
        targets = self._shown_at(moments_s)
        runs = self._runs(targets)
        if len(runs) < FEWEST_FOUND * len(targets):
            # Their keyframes alone will not do.
            self._needed = sum(max(run.targets) + 1 - run.start for run in runs)
        for run in runs:
            spent = self._budget.spent
            if spent >= OVER:
                self.stopped_early = True
                return
            self._context.flush_buffers()
            self._ignored_before_s = self._track.times_s[run.start] - _EPSILON_S
            if spent >= THRIFTY:
                self.stopped_early = True
                yield from self._read_key(run)
            else:
                yield from self._read_run(run, OVER if run is runs[-1] else THRIFTY)

    def _read_key(self, run: _Run) -> Iterator[tuple[float, VideoFrame]]:
        # Some decoders give a picture only when they hear that there are no more.
        return self._pick([self._track.packets[run.start], None], [self._track.times_s[run.start]])

    def _read_run(self, run: _Run, until: float) -> Iterator[tuple[float, VideoFrame]]:
        wanted_s = [self._track.times_s[target] for target in run.targets]
        packets = self._while_affordable(self._packets_from(run.start, {*run.targets}), until)
        for time_s, frame in self._pick(packets, wanted_s):
            yield time_s, frame
            if time_s >= wanted_s[-1] - _EPSILON_S:
                return

    def _while_affordable(self, packets: Iterable[VideoPacket], until: float) -> Iterator[VideoPacket | None]:
        """The packets, and None behind the last; no more of them when time runs out.

        Args:
            packets: In the order of decoding.
            until: Share of the processor time at which to stop.
        """
        for packet in packets:
            spent = self._budget.spent
            if spent >= until or (self._needed and is_hopeless(spent, self._done / self._needed)):
                self.stopped_early = True
                break
            yield packet
            self._done += 1
        yield None

    def _shown_at(self, moments_s: Sequence[float]) -> list[int]:
        """The packets whose pictures are on the screen at the moments, in order of time, each once."""
        times_s = self._track.times_s
        everything = range(self._first, len(times_s))
        shown = [i for i in everything if not self._track.packets[i].is_discard] or [*everything]
        shown.sort(key=times_s.__getitem__)
        shown_s = [times_s[i] for i in shown]
        found = (shown[max(0, bisect_right(shown_s, m + _EPSILON_S) - 1)] for m in moments_s)
        return list(dict.fromkeys(found))

    def _runs(self, targets: list[int]) -> list[_Run]:
        times_s = self._track.times_s
        runs: list[_Run] = []
        for target in targets:
            before = reversed(self._keys[: bisect_right(self._keys, target)])
            key = next((i for i in before if times_s[i] <= times_s[target]), self._first)
            if runs and key <= runs[-1].targets[-1]:
                runs[-1].targets.append(target)
            else:
                runs.append(_Run(key, [target]))
        return runs

    def _packets_from(self, start: int, targets: set[int]) -> Iterator[VideoPacket]:
        """To the end; pictures that no other one needs are not decoded, but for the targets'."""
        for i in range(start, len(self._track.packets)):
            self._context.skip_frame = "DEFAULT" if i in targets else "NONREF"
            yield self._track.packets[i]

    def _pick(
        self, packets: Iterable[VideoPacket | None], wanted_s: Sequence[float]
    ) -> Iterator[tuple[float, VideoFrame]]:
        """The first frame at or after each time; the last one of all, when there is none."""
        waiting = [*reversed(wanted_s)]
        last: tuple[float, VideoFrame] | None = None
        for last in self._decode(packets):
            if waiting and last[0] >= waiting[-1] - _EPSILON_S:
                yield last
            while waiting and last[0] >= waiting[-1] - _EPSILON_S:
                waiting.pop()
        if last is not None and len(waiting) == len(wanted_s):
            yield last

    def _decode(self, packets: Iterable[VideoPacket | None]) -> Iterator[tuple[float, VideoFrame]]:
        with av.logging.Capture() as logs:
            for packet in packets:
                for frame in self._decode_one(packet, logs):
                    self._last_s = self._time_s(frame)
                    if self._last_s >= self._ignored_before_s:
                        yield self._last_s, frame
                logs.clear()

    def _decode_one(self, packet: VideoPacket | None, logs: list[tuple[int, str, str]]) -> list[VideoFrame]:
        try:
            frames = self._context.decode(packet)
        except EOFError:
            return []
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self._judge(logs, damaged=1)
            return []
        for frame in frames:
            check_size(frame.width, frame.height, self._limits)
        if self._track.codec in _MARKS_DAMAGE:
            damaged = sum(frame.is_corrupt and self._counts(frame) for frame in frames)
        else:
            damaged = bool(logs)
        self._judge(logs, damaged)
        return frames

    def _counts(self, frame: VideoFrame) -> bool:
        """Whether it is no leftover from before the place that was jumped to."""
        return self._time_s(frame) >= self._ignored_before_s

    def _time_s(self, frame: VideoFrame) -> float:
        if frame.pts is None or not self._base:
            return self._last_s + 1 / self._track.frame_rate
        return frame.pts * self._base

    def _judge(self, logs: list[tuple[int, str, str]], damaged: int) -> None:
        if any("Picture size" in message for _, _, message in logs):
            raise BadMediaError(MediaProblem.TOO_LARGE, "its pictures are larger than its header says")
        self._damaged += damaged
        if self._damaged > self._tolerated:
            raise BadMediaError(MediaProblem.CORRUPT, "pictures in it are damaged")
