"""What a process can still do when it has closed the sandbox behind itself: nothing but compute."""

import json
import platform
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from keek_server.videos.decoding.seccomp import SeccompUnavailableError

_ATTEMPTS = """
import ctypes, errno, json, os, signal, socket, subprocess, sys, tempfile, threading
from keek_server.videos.decoding.sandbox import close_sandbox

folder = tempfile.mkdtemp()
os.chdir(folder)
open("there", "w").write("x")
already_open = open("there", "rb")
writable = open("there", "r+b")
pair = socket.socketpair()
libc = ctypes.CDLL(None, use_errno=True)
FLAW = close_sandbox(memory_mb=256, cpu_s=5)

def fails(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    except (RuntimeError, ValueError) as error:
        return type(error).__name__
    return None

def io_uring():
    if libc.syscall(425, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")

def trace():
    if libc.ptrace(0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def write():
    writable.write(b"much")
    writable.flush()

ATTEMPTS = {
    "socket": lambda: socket.socket(),
    "connect": lambda: pair[0].connect("nowhere"),
    "send": lambda: pair[0].send(b"x"),
    "open": lambda: open("there", "rb"),
    "create": lambda: open("new", "wb"),
    "write to a file": write,
    "list": lambda: os.listdir("/"),
    "stat": lambda: os.stat("/etc/passwd"),
    "unlink": lambda: os.unlink("there"),
    "rename": lambda: os.rename("there", "here"),
    "fork": lambda: os.fork() or os._exit(0),
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "spawn": lambda: subprocess.run(["/bin/true"]),
    "thread": lambda: threading.Thread(target=print).start(),
    "kill the parent": lambda: os.kill(os.getppid(), 0),
    "trace": trace,
    "duplicate": lambda: os.dup(0),
    "pipe": lambda: os.pipe(),
    "io_uring": io_uring,
    "raise a limit": lambda: __import__("resource").setrlimit(7, (64, 64)),
}
outcome = {name: fails(attempt) for name, attempt in ATTEMPTS.items()}
print(json.dumps({"flaw": FLAW, "read": already_open.read().decode(), **outcome}))
"""


def _run(program: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_nothing_can_be_opened_connected_started_or_written() -> None:
    done = _run(_ATTEMPTS)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome.pop("flaw") is None
    assert outcome.pop("read") == "x"
    # Python says in its own way that a thread cannot be started, or a limit not be raised.
    assert outcome.pop("thread") == "RuntimeError"
    assert outcome.pop("raise a limit") == "ValueError"
    assert outcome.pop("write to a file") == "EFBIG"
    assert {name: error for name, error in outcome.items() if error != "EPERM"} == {}


def test_memory_ends_where_the_limit_is() -> None:
    done = _run("""
        from keek_server.videos.decoding.sandbox import close_sandbox
        close_sandbox(memory_mb=100, cpu_s=5)
        kept = bytearray(50 * 2**20)
        try:
            bytearray(100 * 2**20)
        except MemoryError:
            print("refused")
    """)
    assert done.stdout == "refused\n", done.stderr


def test_processor_time_ends_where_the_limit_is() -> None:
    done = _run("""
        from keek_server.videos.decoding.sandbox import close_sandbox
        close_sandbox(memory_mb=100, cpu_s=1)
        while True:
            pass
    """)
    assert done.returncode == -signal.SIGXCPU


def test_an_unknown_machine_is_told_and_limited_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from keek_server.videos.decoding import seccomp

    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(SeccompUnavailableError, match="vax"):
        seccomp.restrict()
    done = _run("""
        import platform
        platform.machine = lambda: "vax"
        from keek_server.videos.decoding.sandbox import close_sandbox
        print(close_sandbox(memory_mb=100, cpu_s=1))
        try:
            open("/etc/passwd")
        except OSError as error:
            print(error.strerror)
    """)
    assert done.stdout == "no table of system calls for vax\nToo many open files\n", done.stderr


def test_a_thread_that_cannot_be_restricted_is_told() -> None:
    """A filter of its own, which no other thread has, keeps the kernel from giving it this one."""
    done = _run("""
        import ctypes, struct, threading
        from keek_server.videos.decoding import seccomp
        from keek_server.videos.decoding.sandbox import close_sandbox

        filtered, end = threading.Event(), threading.Event()

        def other():
            code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
            program = seccomp._Program(1, ctypes.cast(code, ctypes.c_void_p))
            libc = ctypes.CDLL(None)
            assert libc.prctl(38, 1, 0, 0, 0) == 0
            assert libc.prctl(22, ctypes.c_long(2), ctypes.byref(program), 0, 0) == 0
            filtered.set()
            end.wait()

        thread = threading.Thread(target=other)
        thread.start()
        assert filtered.wait(10)
        print(close_sandbox(memory_mb=100, cpu_s=1))
        end.set()
        thread.join()
    """)
    assert re.fullmatch(r"thread \d+ has a filter of its own\n", done.stdout), done.stdout + done.stderr
