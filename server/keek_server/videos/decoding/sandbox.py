"""Closes a process off, before it reads the first byte of a file that nobody vouches for."""

import ctypes
import os
import resource
import signal
from pathlib import Path

from keek_server.videos.decoding.seccomp import SeccompUnavailableError, restrict

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_NICENESS = 10


def die_with(parent: int) -> None:
    """Asks the kernel for SIGKILL at the parent's death.

    Raises:
        SystemExit: It is dead already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that died before the call above sends nothing.
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


def close_sandbox(*, memory_mb: int, cpu_s: int) -> str | None:
    """Limits and restricts this process for good.

    Afterwards it can read and write what it has open, and compute; nothing can be opened,
    connected to, started, or written to a file. Of processor time and address space it gets what
    is said, counted from now.

    Args:
        memory_mb: MiB of address space.
        cpu_s: Seconds; SIGXCPU after that, SIGKILL a second later.

    Returns:
        None, or why the kernel refused to filter system calls; the limits hold in any case.
    """
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    _prctl(_PR_SET_DUMPABLE, 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_limit = int(used.ru_utime + used.ru_stime) + 1 + cpu_s
    limits = {
        resource.RLIMIT_AS: _address_space_bytes() + memory_mb * 2**20,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, limit in limits.items():
        _limit(kind, limit, limit)
    _limit(resource.RLIMIT_CPU, cpu_limit, cpu_limit + 1)
    try:
        restrict()
    except SeccompUnavailableError as error:
        return str(error)
    return None


def _limit(kind: int, soft: int, hard: int) -> None:
    """Never above what this process was given, by a container for example."""
    given = resource.getrlimit(kind)[1]
    if given != resource.RLIM_INFINITY:
        soft, hard = min(soft, given), min(hard, given)
    resource.setrlimit(kind, (soft, hard))


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * resource.getpagesize()


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
