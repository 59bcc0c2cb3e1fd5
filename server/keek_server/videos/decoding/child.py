"""The child process: `python -I -m keek_server.videos.decoding.child PARENT`, a socket as its input.

It imports, says that it is ready, waits for one job, closes the sandbox behind itself, answers, and
ends. Nothing of one file is there when the next comes.
"""

import io
import os
import socket
import sys
import traceback
from dataclasses import asdict
from typing import Any, BinaryIO

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.videos.decoding.image import decode_image
from keek_server.videos.decoding.sandbox import close_sandbox, die_with
from keek_server.videos.decoding.types import Job, Limits
from keek_server.videos.decoding.video import decode_video
from keek_server.videos.decoding.warmup import warm_up
from keek_server.videos.decoding.wire import READY, receive_job, write_answer

_CHANNEL = 0
_WARM_UP_LIMITS = Limits(
    max_duration_s=10.0,
    max_side_pixels=64,
    max_frame_rate=60.0,
    max_frames=10,
    verify_pixels=10**6,
    codecs=("mpeg4",),
    cpu_s=1,
    memory_mb=64,
)


def main() -> None:
    """One file, one answer."""
    die_with(int(sys.argv[1]))
    warm_up(_WARM_UP_LIMITS)
    channel = socket.socket(fileno=os.dup(_CHANNEL))
    channel.sendall(READY)
    received = receive_job(channel)
    if received is None:
        return
    job, descriptor = received
    file = io.FileIO(descriptor, "r")
    flaw = close_sandbox(memory_mb=job.limits.memory_mb, cpu_s=job.limits.cpu_s)
    head, body = _answer(file, job)
    write_answer(_CHANNEL, head | {"flaw": flaw}, body)
    # No destructors: what is in memory may be as hostile as the file.
    os._exit(0)


def _answer(file: BinaryIO | io.FileIO, job: Job) -> tuple[dict[str, Any], bytes]:
    try:
        if job.kind == "image":
            return {}, decode_image(file, job)
        summary, body = decode_video(file, job)
        return asdict(summary), body
    except BadMediaError as error:
        return _refusal(error.reason, error.violations[0].description), b""
    except MemoryError:
        text = "decoding it takes more memory than its like may take"
        return _refusal(MediaProblem.DECODE_BOMB, text), b""
    except Exception:  # noqa: BLE001 - whatever goes wrong, this file was the cause
        traceback.print_exc()
        return _refusal(MediaProblem.CORRUPT, "the decoder fails on it"), b""


def _refusal(problem: MediaProblem, description: str) -> dict[str, Any]:
    return {"problem": problem.value, "description": description}


if __name__ == "__main__":
    main()
