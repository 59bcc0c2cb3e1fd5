"""Decoded frames become pictures as a player would show them: in RGB, turned upright, with square pixels."""

import struct

from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image
from PIL.Image import Resampling, Transpose

_UNSPECIFIED = 2
_HD_HEIGHT = 720
_SAR_RANGE = (0.25, 4.0)
"""Pixels of a shape beyond this are a mistake in the file, and taken as square."""
_THUMBNAIL = 32

_MATRIX = struct.Struct("=2i4x2i16x")
"""a, b and c, d of the nine numbers (a, b, u, c, d, v, x, y, w)."""
# Which way the picture's right and down point on the screen: the signs of the matrix (a, b, c, d).
_TURNS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Transpose.ROTATE_180,
    (0, 1, -1, 0): Transpose.ROTATE_270,
    (0, -1, 1, 0): Transpose.ROTATE_90,
    (0, 1, 1, 0): Transpose.TRANSPOSE,
    (0, -1, -1, 0): Transpose.TRANSVERSE,
}


class Painter:
    """Turns the frames of one stream into pictures."""

    def __init__(self, sample_aspect_ratio: float | None) -> None:
        """
        Args:
            sample_aspect_ratio: Width of a pixel by its height; None when not known.
        """
        low, high = _SAR_RANGE
        known = sample_aspect_ratio is not None and low <= sample_aspect_ratio <= high
        self._ratio = sample_aspect_ratio if known and sample_aspect_ratio else 1.0
        self._full = VideoReformatter()
        self._small = VideoReformatter()

    def paint(self, frame: VideoFrame) -> Image.Image:
        """The whole picture, RGB."""
        image = _rgb(self._full, frame, frame.width, frame.height, Interpolation.BICUBIC)
        width = _shown_width(frame.width, self._ratio)
        if width != frame.width:
            image = image.resize((width, frame.height), Resampling.BICUBIC)
        turn = _turn(frame)
        return image if turn is None else image.transpose(turn)

    def thumbnail(self, frame: VideoFrame) -> Image.Image:
        """32 x 32 pixels, RGB, neither upright nor in proportion: to compare frames with each other."""
        return _rgb(self._small, frame, _THUMBNAIL, _THUMBNAIL, Interpolation.AREA)

    def shown_size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height in pixels of what `paint` gives."""
        width = _shown_width(frame.width, self._ratio)
        turn = _turn(frame)
        sideways = turn is not None and turn not in _UPRIGHT
        return (frame.height, width) if sideways else (width, frame.height)


_UPRIGHT = {Transpose.FLIP_LEFT_RIGHT, Transpose.FLIP_TOP_BOTTOM, Transpose.ROTATE_180}


def _shown_width(width: int, ratio: float) -> int:
    return max(1, round(width * ratio))


def _rgb(
    reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int, interpolation: Interpolation
) -> Image.Image:
    guess = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    rgb = reformatter.reformat(
        frame,
        width,
        height,
        "rgb24",
        src_colorspace=guess if frame.colorspace == _UNSPECIFIED else frame.colorspace,
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,
        interpolation=interpolation,
        threads=1,
    )
    plane = rgb.planes[0]
    return Image.frombytes("RGB", (width, height), bytes(plane), "raw", "RGB", plane.line_size, 1)


def _turn(frame: VideoFrame) -> Transpose | None:
    """How to turn the decoded picture, from the display matrix; arbitrary angles go to the nearest."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData) or matrix.buffer_size < _MATRIX.size:
        return None
    a, b, c, d = _MATRIX.unpack_from(bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        b = c = 0
    else:
        a = d = 0
    return _TURNS.get((_sign(a), _sign(b), _sign(c), _sign(d)))


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
