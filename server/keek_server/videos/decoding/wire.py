"""The frames on the socket between the server and a child: two lengths, JSON, then raw bytes.

Either side bounds what it reads; the server trusts nothing of what it reads.
"""

import json
import os
import socket
import struct
from dataclasses import asdict
from typing import Any

from keek_server.videos.decoding.types import FrameShape, Job, Limits

READY = b"r"
"""What the child writes when it has imported everything."""
PREFIX = struct.Struct(">II")
MAX_HEAD_BYTES = 64 * 1024
_MAX_JOB_BYTES = 16 * 1024


def encode_job(job: Job) -> bytes:
    """One message, to be sent with the file's descriptor."""
    return json.dumps(asdict(job)).encode() + b"\n"


def decode_job(message: bytes) -> Job:
    """The job of a message."""
    fields: dict[str, Any] = json.loads(message)
    limits = fields.pop("limits")
    shape = fields.pop("shape")
    limits["codecs"] = tuple(limits["codecs"])
    return Job(**fields, limits=Limits(**limits), shape=FrameShape(**shape) if shape else None)


def receive_job(channel: socket.socket) -> tuple[Job, int] | None:
    """Waits for a job and the descriptor of its file; None when the server has gone or needs none."""
    message, descriptors, _, _ = socket.recv_fds(channel, _MAX_JOB_BYTES, 1)
    while message and not message.endswith(b"\n"):
        more = channel.recv(_MAX_JOB_BYTES)
        if not more:
            return None
        message += more
    return (decode_job(message), descriptors[0]) if message else None


def write_answer(descriptor: int, head: dict[str, Any], body: bytes = b"") -> None:
    """Sends an answer by plain writes, all that the sandbox leaves."""
    encoded = json.dumps(head).encode()
    rest = memoryview(PREFIX.pack(len(encoded), len(body)) + encoded + body)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
