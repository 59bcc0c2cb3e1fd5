"""Does once, on files that it makes itself, all that a child does later on a stranger's.

In the sandbox nothing can be opened any more, so whatever Python, PyAV or Pillow import or set up on
the first use has to have happened before; and a child that was used once is faster.
"""

import io
import logging
from typing import Literal

import av
import av.audio.codeccontext
import av.audio.stream
import av.logging
import av.subtitles.codeccontext
import av.subtitles.stream
from av.video.frame import VideoFrame
from PIL import Image

from keek_server.videos.decoding.image import FORMATS, decode_image
from keek_server.videos.decoding.types import FrameShape, Job, Limits
from keek_server.videos.decoding.video import decode_video

_SHAPE = FrameShape(16)
_SIDE, _FRAMES = 32, 3


def warm_up(limits: Limits) -> None:
    """
    Args:
        limits: Any that allow the small files made here.
    """
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    # What FFmpeg says of a file is looked at where it counts, and is no news for the server's log.
    logging.getLogger("libav").propagate = False
    logging.getLogger("libav").addHandler(logging.NullHandler())
    picture = Image.linear_gradient("L").resize((_SIDE, _SIDE)).convert("RGB")
    for kind in FORMATS:
        _run("image", _image(picture, kind), limits)
    _run("video", _video(picture), limits)


def _run(kind: Literal["image", "video"], content: bytes, limits: Limits) -> None:
    job = Job(kind, len(content), _SHAPE, 1, limits)
    decode = decode_image if kind == "image" else decode_video
    decode(io.BytesIO(content), job)


def _image(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def _video(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", 25)
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for _ in range(_FRAMES):
            output.mux(stream.encode(_frame(picture)))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _frame(picture: Image.Image) -> VideoFrame:
    return VideoFrame.from_bytes(picture.convert("RGBA").tobytes(), *picture.size)
