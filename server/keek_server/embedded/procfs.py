"""What /proc tells about processes: who is alive, who is ours, whose child has died (Linux)."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from keek_server.errors import SetupError

PROC = Path("/proc")
MARK = "KEEK_EMBEDDED"
"""Environment variable that marks the processes of an embedded stack; descendants inherit it.
Its value is the stack's random mark, a dash and the service's name."""
_MARKED_ARGUMENTS = ("cluster_name=", "postgres: ")
"""What the mark follows in the command lines of PostgreSQL's processes: of the first process,
and of its children, which write a title over their environment. Command lines are also open to
a root without CAP_SYS_PTRACE, as in a container; other users' environments are not."""

_KILL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One line of /proc/PID/stat."""

    pid: int
    state: str
    start_ticks: int
    """When it started, in clock ticks since the machine's boot."""

    @property
    def alive(self) -> bool:
        """False for a zombie, which only waits for its parent to take notice."""
        return self.state not in "ZX"


def process_status(pid: int) -> ProcessStatus | None:
    """A process's status; None when there is no such process."""
    try:
        line = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in brackets, may hold spaces and brackets itself.
    fields = line.rpartition(")")[2].split()
    return ProcessStatus(pid, state=fields[0], start_ticks=int(fields[19]))


def identity(pid: int) -> str | None:
    """Names a living process for good: a pid is used again, with its start and boot it is not."""
    status = process_status(pid)
    if status is None or not status.alive:
        return None
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{pid}:{status.start_ticks}"


def dead_children(pid: int) -> set[int]:
    """Children of a process that have died without its taking notice (zombies)."""
    statuses = (process_status(child) for child in children(pid))
    return {status.pid for status in statuses if status and not status.alive}


def children(pid: int) -> set[int]:
    """Children of a process, zombies included; empty when there is no such process."""
    found: set[int] = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in (PROC / str(pid) / "task").iterdir():
            # A child is listed with the thread that started it; a thread may end meanwhile.
            with suppress(FileNotFoundError, ProcessLookupError):
                found.update(map(int, (thread / "children").read_text().split()))
    return found


def marked_processes(mark: str) -> list[int]:
    """Living processes that were started with this mark, or one that it begins."""
    return [pid for pid in _pids() if _carries(pid, mark)]


def kill_marked(mark: str) -> None:
    """Kills every process that carries the mark, and waits until none is left.

    Whoever has another mark or none is never touched: a process is held by a file
    descriptor while its mark is read, so that its pid cannot become another's.

    Raises:
        SetupError: one is still there after some seconds.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while pids := marked_processes(mark):
        if time.monotonic() > deadline:
            raise SetupError(f"processes of an earlier run cannot be killed: {pids}")
        for pid in pids:
            _kill(pid, mark)
        time.sleep(0.01)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir(PROC) if entry.name.isdigit())


def _carries(pid: int, mark: str) -> bool:
    entry = f"{MARK}={mark}"
    arguments = tuple(f"{before}{entry}".encode() for before in _MARKED_ARGUMENTS)
    return _any_starts(pid, "environ", entry.encode()) or _any_starts(pid, "cmdline", *arguments)


def _any_starts(pid: int, file: str, *prefixes: bytes) -> bool:
    """Whether one of the strings in a file of /proc/PID begins with one of these."""
    try:
        strings = (PROC / str(pid) / file).read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return any(string.startswith(prefixes) for string in strings)


def _kill(pid: int, mark: str) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _carries(pid, mark):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
