"""The square pictures that CLIP takes, made from any picture exactly as open_clip's transform does it."""

from collections.abc import Callable

from PIL import Image
from PIL.Image import Resampling

from keek_server.videos.decoding.types import FrameShape, ResizeMode

_MOST_SIDES = 32
"""Sides of the square that the whole picture may be long, resized, before only its middle is resized."""
_FILTERS = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}


def to_square(image: Image.Image, shape: FrameShape) -> bytes:
    """
    Args:
        image: RGB, any size.

    Returns:
        uint8 [3, size, size], in C order.
    """
    size = _SIZES[shape.resize_mode](image.size, shape.size)
    if max(size) > _MOST_SIDES * shape.size:
        square = _centre_of_long(image, size, shape)
    else:
        square = _centre(image.resize(size, _FILTERS[shape.interpolation]), shape.size)
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


def _centre_of_long(image: Image.Image, size: tuple[int, int], shape: FrameShape) -> Image.Image:
    """As if all of it were resized, but for rounding: Pillow keeps boxes as float32."""
    side, resampling = shape.size, _FILTERS[shape.interpolation]
    left, right = _kept(image.width, size[0], side)
    top, bottom = _kept(image.height, size[1], side)
    # Pillow goes this way round, too; the rounding between the two shows.
    column = image.resize((side, image.height), resampling, box=(left, 0, right, image.height))
    return column.resize((side, side), resampling, box=(0, top, side, bottom))


def _kept(length: int, resized: int, side: int) -> tuple[float, float]:
    """What becomes the middle, in pixels of the original."""
    offset, scale = _offset(resized, side), length / resized
    return offset * scale, min((offset + side) * scale, length)


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Cuts the middle out, or puts the picture into the middle of black."""
    if image.size == (side, side):
        return image
    left, top = (_offset(length, side) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _offset(length: int, side: int) -> int:
    """Where the middle begins; negative where there is too little. Ties go as in torchvision."""
    return round((length - side) / 2) if length >= side else -((side - length) // 2)
