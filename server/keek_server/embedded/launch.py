"""Becomes another program that dies with its parent: `launch.py PARENT CHANGES PROGRAM ARGS...`.

A program of its own rather than a function between fork and exec: in a process with
threads (gRPC, FAISS, ONNX Runtime), Python code there may deadlock.

CHANGES is JSON. Of the environment, `set` names variables and their values, `prepend` names
lists of paths to put before what is there, `drop` lists what to leave out. `user` is the uid and
the gid to become, or null.
"""

import ctypes
import json
import os
import signal
import sys
from typing import TypedDict

PR_SET_PDEATHSIG = 1


class Changes(TypedDict):
    """What the program has different from this process."""

    set: dict[str, str]
    prepend: dict[str, list[str]]
    drop: list[str]
    user: tuple[int, int] | None


def environment(changes: Changes) -> dict[str, str]:
    """What this process inherited, with the changes made."""
    result = {name: value for name, value in os.environ.items() if name not in changes["drop"]}
    for name, paths in changes["prepend"].items():
        result[name] = os.pathsep.join([*paths, *filter(None, [result.get(name)])])
    return result | changes["set"]


def become(uid: int, gid: int) -> None:
    """Gives up root's rights for good."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    # The folder this was started in may be closed to that user.
    os.chdir("/")


def main() -> None:
    """Asks the kernel for SIGKILL at the parent's death, then becomes the program."""
    parent, changes, program = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    if changes["user"] is not None:
        # Before the call below: the kernel forgets that one when the user changes.
        become(*changes["user"])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before the call above sends nothing.
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execve(program[0], program, environment(changes))  # noqa: S606 - no shell is meant


if __name__ == "__main__":
    main()
