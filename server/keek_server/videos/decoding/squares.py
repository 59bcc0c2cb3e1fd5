"""The square pictures that CLIP takes, made from any picture exactly as open_clip's transform does it."""

from collections.abc import Callable

from PIL import Image
from PIL.Image import Resampling

from keek_server.videos.decoding.types import FrameShape, ResizeMode

_FILTERS = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}


def to_square(image: Image.Image, shape: FrameShape) -> bytes:
    """
    Args:
        image: RGB, any size.

    Returns:
        uint8 [3, size, size], in C order.
    """
    resized = image.resize(_SIZES[shape.resize_mode](image.size, shape.size), _FILTERS[shape.interpolation])
    square = _centre(resized, shape.size)
    return b"".join(band.tobytes() for band in square.split())


def _shortest(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The shorter side exactly, the longer one rounded down."""
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _longest(size: tuple[int, int], side: int) -> tuple[int, int]:
    ratio = max(size) / side
    return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))


def _squash(_size: tuple[int, int], side: int) -> tuple[int, int]:
    return side, side


_SIZES: dict[ResizeMode, Callable[[tuple[int, int], int], tuple[int, int]]] = {
    "shortest": _shortest,
    "longest": _longest,
    "squash": _squash,
}


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Cuts the middle out, or puts the picture into the middle of black."""
    if image.size == (side, side):
        return image
    left, top = (_offset(length, side) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _offset(length: int, side: int) -> int:
    """Where the middle begins; negative where there is too little. Ties go as in torchvision."""
    return round((length - side) / 2) if length >= side else -((side - length) // 2)
