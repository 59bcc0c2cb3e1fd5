"""What happens to a child process concerns the call that it works for, and no other."""

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from benchmarks.clips import Clip, any_clip, write_clip
from benchmarks.hostile_files import hostile_files
from patience import eventually

from keek_server.embedded import procfs
from keek_server.errors import BadMediaError, KeekError, MediaProblem, OverloadedError, UnavailableError
from keek_server.settings import Settings
from keek_server.videos.decoding import worker
from keek_server.videos.decoding.decoder import Decoder, open_decoder
from keek_server.videos.decoding.types import FrameShape

SHAPE = FrameShape(32)


@pytest.fixture
async def decoder(tmp_path: Path) -> AsyncIterator[Decoder]:
    """One video at a time, one more may wait."""
    settings = Settings(data_dir=tmp_path, decode_workers=1, decode_queue=1, decode_timeout_s=60.0)
    async with open_decoder(settings) as opened:
        yield opened


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(Clip(), tmp_path)


def _open_files() -> Counter[str]:
    """What this process has open, by what it is."""
    found: Counter[str] = Counter()
    for one in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found[str(one.readlink())] += 1
    return found


def _children() -> set[int]:
    return set(procfs.children(os.getpid()))


async def _nothing_left(files: Counter[str], children: set[int]) -> None:
    """Waits until nothing is there that was not before. Others in this process come and go meanwhile."""
    await eventually(lambda: not _open_files() - files and not _children() - children)


def _lives(pid: int) -> bool:
    status = procfs.process_status(pid)
    return status is not None and status.alive


def _exists(pid: int) -> bool:
    """Zombies count."""
    return Path(f"/proc/{pid}").exists()


async def _stop_spare(decoder: Decoder) -> int:
    """Freezes the child that is ready for the next file, so that it never answers."""
    pid = await _ready_spare(decoder)
    os.kill(pid, signal.SIGSTOP)
    return pid


async def _ready_spare(decoder: Decoder) -> int:
    """The child that is ready for the next file, once it waits for it. It is handed one in a single step."""
    (worker,) = decoder._pool._spares
    async with asyncio.timeout(30.0):
        await worker.ready()
    return worker.pid


async def test_a_child_that_gets_no_processor_is_killed_and_no_fault_of_the_file(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, decode_workers=1)
    async with open_decoder(settings) as decoder:
        await decoder.decode_video(clip, SHAPE, 1)
        pid = await _stop_spare(decoder)
        started = time.monotonic()
        with monkeypatch.context() as hurried:
            # Of this call alone: the others may need the time.
            hurried.setattr(decoder, "_settings", settings.model_copy(update={"decode_timeout_s": 2.0}))
            with pytest.raises(UnavailableError, match="too busy"):
                await decoder.decode_video(clip, SHAPE, 8)
        assert 1.9 < time.monotonic() - started < 20.0
        await eventually(lambda: not _exists(pid))
        await decoder.decode_video(clip, SHAPE, 8)


_STAND_IN = """
import os, resource, signal, socket, sys, time
channel = socket.socket(fileno=0)
channel.sendall(b"r")
channel.recv(1 << 16)
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the first child of a decoder one that does something else with its job."""
    usual = worker._command

    def install(program: str) -> None:
        commands = iter([[sys.executable, "-I", "-c", _STAND_IN + program]])
        monkeypatch.setattr(worker, "_command", lambda: next(commands, usual()))

    return install


async def test_a_child_that_hangs_up_and_goes_on_is_killed_and_its_place_is_free_again(
    tmp_path: Path, clip: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keek_server.videos.decoding.decoder._EXIT_TIMEOUT_S", 0.5)
    stand_in("channel.close()\ntime.sleep(3600)")
    async with open_decoder(Settings(data_dir=tmp_path, decode_workers=1)) as decoder:
        (pid,) = decoder.children
        async with asyncio.timeout(60.0):
            with pytest.raises(BadMediaError) as refused:
                await decoder.decode_video(clip, SHAPE, 8)
            assert refused.value.reason is MediaProblem.CORRUPT
            await eventually(lambda: not _exists(pid))
            await decoder.decode_video(clip, SHAPE, 8)


async def test_a_child_that_ignores_the_end_of_its_processor_time_has_a_bomb(
    tmp_path: Path, clip: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in("""
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
while True:
    pass
""")
    # A busy machine takes its time for two seconds of a processor.
    settings = Settings(data_dir=tmp_path, decode_workers=1, decode_cpu_s=1, decode_timeout_s=240.0)
    async with open_decoder(settings) as decoder:
        with pytest.raises(BadMediaError, match="more than 1 s of processor time") as refused:
            await decoder.decode_video(clip, SHAPE, 8)
    assert refused.value.reason is MediaProblem.DECODE_BOMB


@pytest.mark.parametrize(
    "program",
    [
        "channel.sendall((60_000).to_bytes(4) + bytes(4) + b'[' * 60_000)",
        "channel.sendall((2).to_bytes(4) + bytes(4) + b'{}')",
        "channel.sendall(b'\\xff' * 8)",
        "os.write(2, b'forged\\nline'); sys.exit(3)",
    ],
    ids=["nested", "empty", "endless", "end"],
)
async def test_what_a_child_makes_up_is_a_refusal_and_stays_within_its_line_of_the_log(
    tmp_path: Path,
    clip: Path,
    stand_in: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    program: str,
) -> None:
    stand_in(program)
    async with open_decoder(Settings(data_dir=tmp_path, decode_workers=1)) as decoder:
        with pytest.raises(BadMediaError, match="the decoder fails on it") as refused:
            await decoder.decode_video(clip, SHAPE, 8)
    assert refused.value.reason is MediaProblem.CORRUPT
    own = [r for r in caplog.records if r.name.startswith("keek_server.videos.decoding")]
    assert own
    assert all("\n" not in r.getMessage() and not r.exc_info for r in own)


def _fail(*_: object, **__: object) -> None:
    raise OSError(errno.EAGAIN, "no more of them")


@pytest.mark.parametrize(("module", "name"), [(subprocess, "Popen"), (os, "pidfd_open")])
async def test_a_spare_child_that_cannot_be_started_is_missed_by_nobody(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    before = _open_files(), _children()
    # Only the worker's own view of the module: others in this process start children as well.
    failing = SimpleNamespace(**{**vars(module), name: _fail})
    async with open_decoder(Settings(data_dir=tmp_path, decode_workers=1)) as decoder:
        with monkeypatch.context() as broken:
            broken.setattr(worker, module.__name__, failing)
            assert len((await decoder.decode_video(clip, SHAPE, 8)).frames) == 8
            with pytest.raises(UnavailableError, match="could be started"):
                await decoder.decode_video(clip, SHAPE, 8)
        assert len((await decoder.decode_video(clip, SHAPE, 8)).frames) == 8
    await _nothing_left(*before)


async def test_a_child_that_is_killed_from_outside_is_no_fault_of_the_file(
    decoder: Decoder, clip: Path
) -> None:
    pid = await _stop_spare(decoder)
    task = asyncio.create_task(decoder.decode_video(clip, SHAPE, 8))
    await eventually(lambda: len(decoder.children) == 2)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="signal 9"):
        await task
    assert len((await decoder.decode_video(clip, SHAPE, 8)).frames) == 8


async def test_a_spare_child_that_died_is_replaced_without_anyone_noticing(
    decoder: Decoder, clip: Path
) -> None:
    (pid,) = decoder.children
    os.kill(pid, signal.SIGKILL)
    # A signal takes a moment; one that dies with a file in its hands is another case.
    await eventually(lambda: not _lives(pid))
    assert len((await decoder.decode_video(clip, SHAPE, 8)).frames) == 8
    await eventually(lambda: not _exists(pid))


async def test_a_decoder_that_crashes_leaves_a_refusal_and_a_line_in_the_log(
    decoder: Decoder, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pid = await _stop_spare(decoder)
    task = asyncio.create_task(decoder.decode_video(clip, SHAPE, 8))
    await eventually(lambda: len(decoder.children) == 2)
    os.kill(pid, signal.SIGSEGV)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(BadMediaError, match="the decoder fails on it") as refused:
        await task
    assert refused.value.reason is MediaProblem.CORRUPT
    assert [r.levelno for r in caplog.records if "ended with code -11" in r.message] == [logging.ERROR]


async def test_a_cancelled_call_leaves_no_process(decoder: Decoder, clip: Path) -> None:
    pid = await _stop_spare(decoder)
    task = asyncio.create_task(decoder.decode_video(clip, SHAPE, 8))
    await eventually(lambda: len(decoder.children) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: not _exists(pid))
    assert len((await decoder.decode_video(clip, SHAPE, 8)).frames) == 8


async def test_too_many_are_refused_and_those_who_wait_are_served(decoder: Decoder, clip: Path) -> None:
    pid = await _stop_spare(decoder)
    first = asyncio.create_task(decoder.decode_video(clip, SHAPE, 8))
    await eventually(lambda: len(decoder.children) == 2)
    second = asyncio.create_task(decoder.decode_video(clip, SHAPE, 8))
    await eventually(lambda: decoder._videos._waiting == 1)
    with pytest.raises(OverloadedError):
        await decoder.decode_video(clip, SHAPE, 8)
    # An image of a search does not wait for videos.
    with pytest.raises(BadMediaError):
        await asyncio.wait_for(decoder.decode_image(b"none", SHAPE), 30.0)
    os.kill(pid, signal.SIGCONT)
    one, two = await asyncio.gather(first, second)
    np.testing.assert_array_equal(one.frames, two.frames)


async def test_closing_ends_every_child_and_every_call(tmp_path: Path, clip: Path) -> None:
    before = _open_files(), _children()
    async with open_decoder(Settings(data_dir=tmp_path, decode_workers=2)) as decoder:
        await decoder.decode_video(clip, SHAPE, 1)
        for pid in decoder.children:
            os.kill(pid, signal.SIGSTOP)
        calls = [asyncio.create_task(decoder.decode_video(clip, SHAPE, 8)) for _ in range(2)]
        await eventually(lambda: len(decoder.children) == 4)
        pids = decoder.children
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnavailableError, UnavailableError]
    assert not any(_exists(pid) for pid in pids)
    with pytest.raises(UnavailableError, match="closed"):
        await decoder.decode_video(clip, SHAPE, 8)
    await _nothing_left(*before)


async def test_a_child_gets_neither_the_environment_nor_the_files_of_the_server(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    monkeypatch.setenv("KEEK_DATABASE_URL", "postgresql://secret")
    await decoder.decode_video(clip, SHAPE, 1)
    pid = await _ready_spare(decoder)
    environment, opened = await asyncio.to_thread(_belongings, pid)
    assert environment == {b"LANG=C.UTF-8"}
    assert all(one.startswith(("socket:", "pipe:", "/dev/null")) for one in opened), opened


def _belongings(pid: int) -> tuple[set[bytes], list[str]]:
    """A process's environment, and what it has open."""
    folder = Path(f"/proc/{pid}")
    environment = (folder / "environ").read_bytes().split(b"\0")
    return {*filter(None, environment)}, [str(one.readlink()) for one in (folder / "fd").iterdir()]


async def test_children_work_for_uvloop_too_and_die_with_the_server(tmp_path: Path, clip: Path) -> None:
    program = f"""
import asyncio, uvloop
from pathlib import Path
from keek_server.settings import Settings
from keek_server.videos.decoding.decoder import open_decoder

async def main():
    async with open_decoder(Settings(data_dir=Path({str(tmp_path)!r}))) as decoder:
        video = await decoder.decode_video(Path({str(clip)!r}), None, 0)
        assert video.poster_jpeg
        print(*decoder.children, flush=True)
        await asyncio.sleep(60)

uvloop.run(main())
"""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    pids = [int(pid) for pid in (await server.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(_exists(pid) for pid in pids)
    server.kill()
    await server.wait()
    await eventually(lambda: not any(_exists(pid) for pid in pids))


async def test_good_uploads_do_not_notice_bad_ones(tmp_path: Path) -> None:
    bad = [file.write(tmp_path) for file in hostile_files() if "empty-pictures" not in file.name]
    good = [write_clip(any_clip(seed), tmp_path, f"good-{seed}") for seed in range(3)]
    settings = Settings(data_dir=tmp_path, decode_workers=2, decode_queue=100, decode_timeout_s=120.0)
    async with open_decoder(settings) as decoder:
        before = [await decoder.decode_video(path, SHAPE, 8) for path in good]

        async def refused(path: Path) -> bool:
            with pytest.raises(BadMediaError):
                await decoder.decode_video(path, SHAPE, 8)
            return True

        calls = [decoder.decode_video(path, SHAPE, 8) for path in good * 4]
        *refusals, meanwhile = await asyncio.gather(*map(refused, bad), asyncio.gather(*calls))
        assert refusals == [True] * len(bad)
        for i, video in enumerate(meanwhile):
            np.testing.assert_array_equal(video.frames, before[i % 3].frames)
            assert video.poster_jpeg == before[i % 3].poster_jpeg


async def test_a_child_that_cannot_start_is_told_as_unavailable(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keek_server.videos.decoding.worker._MODULE", "keek_server.no_such_module")
    async with open_decoder(Settings(data_dir=tmp_path)) as decoder:
        with pytest.raises(UnavailableError, match="could be started") as failed:
            await decoder.decode_video(clip, SHAPE, 8)
    assert isinstance(failed.value, KeekError)


async def test_an_image_that_cannot_be_handed_over_is_told_as_unavailable(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keek_server.videos.decoding.source.os.memfd_create", _fail)
    with pytest.raises(UnavailableError, match="no more of them"):
        await decoder.decode_image(b"any", SHAPE)
