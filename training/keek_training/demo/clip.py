"""A short clip to upload, rendered here: whoever runs the demonstration needs none at hand."""

from pathlib import Path
from typing import Final

import av
import numpy as np
from av.video.frame import VideoFrame

_SIDE: Final = 240
_SECONDS: Final = 2
_FRAME_RATE: Final = 25


def render_clip(path: Path) -> None:
    """Writes an MP4 of two seconds: a bright disc that crosses a blue field."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=_FRAME_RATE)
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(_SECONDS * _FRAME_RATE):
            centre = _SIDE * (number + 1) / (_SECONDS * _FRAME_RATE + 1)
            disc = (x - centre) ** 2 + (y - _SIDE / 2) ** 2 < (_SIDE / 5) ** 2
            picture = np.where(disc[..., None], (240, 200, 40), (30, 60, 160)).astype(np.uint8)
            output.mux(stream.encode(VideoFrame.from_ndarray(picture)))
        output.mux(stream.encode())
