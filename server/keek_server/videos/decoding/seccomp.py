"""A seccomp filter that leaves a process its memory, its clock, and the descriptors it has open.

Everything else, from `open` and `socket` to `execve`, `clone`, `kill` and whatever a newer kernel
may add, fails with EPERM. The list says what is allowed, not what is forbidden: what was forgotten is
then a decoder that fails, and not a hole.
"""

import ctypes
import platform
import struct

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_MODE_FILTER = 2
_SET_MODE_FILTER = 1
_ALL_THREADS = 1
_EPERM = 1

_LOAD_WORD = 0x20
_JUMP_EQUAL = 0x15
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_FAIL = 0x00050000 | _EPERM
_KILL_PROCESS = 0x80000000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4  # in struct seccomp_data

# name: (x86_64, aarch64)
_ALLOWED = {
    # what is open: read, write, move in it, close
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    # memory
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    # its own threads and signals; none can be started or sent
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # time and chance
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    # the end
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# machine: (column above, AUDIT_ARCH_*, number of seccomp itself)
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}


class SeccompUnavailableError(Exception):
    """The kernel or the machine does not do this; says why."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def restrict() -> None:
    """Applies the filter to all threads of this process, for good.

    Raises:
        SeccompUnavailableError: Nothing is restricted.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise SeccompUnavailableError(f"no table of system calls for {platform.machine()}")
    column, architecture, seccomp = machine
    code = _assemble(architecture, sorted(numbers[column] for numbers in _ALLOWED.values()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise SeccompUnavailableError(_last_error("no_new_privs"))
    reference = ctypes.byref(program)
    number = ctypes.c_long(seccomp)
    refused = libc.syscall(number, ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(_ALL_THREADS), reference)
    if refused == 0:
        return
    if refused > 0:
        # Below, the filter would be one of this thread alone.
        raise SeccompUnavailableError(f"thread {refused} has a filter of its own")
    # Some container runtimes hide the call and leave the older way to do it.
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_long(_MODE_FILTER), reference, 0, 0) != 0:
        raise SeccompUnavailableError(_last_error("the kernel refuses seccomp filters"))


def _assemble(architecture: int, allowed: list[int]) -> bytes:
    """Classic BPF: wrong architecture, die; one of the numbers, go on; any other, EPERM."""
    code = [
        _instruction(_LOAD_WORD, _ARCHITECTURE_OFFSET),
        _instruction(_JUMP_EQUAL, architecture, if_true=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD_WORD, _NUMBER_OFFSET),
    ]
    # A match jumps over what remains of the list and the refusal behind it.
    code += [_instruction(_JUMP_EQUAL, nr, if_true=len(allowed) - i) for i, nr in enumerate(allowed)]
    code += [_instruction(_RETURN, _FAIL), _instruction(_RETURN, _ALLOW)]
    return b"".join(code)


def _instruction(operation: int, value: int, *, if_true: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, 0, value)


def _last_error(what: str) -> str:
    return f"{what}: errno {ctypes.get_errno()}"
