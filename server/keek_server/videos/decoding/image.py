"""Decodes the image of a query."""

import warnings
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.videos.decoding.squares import to_square
from keek_server.videos.decoding.track import check_size
from keek_server.videos.decoding.types import Job

FORMATS = ("JPEG", "PNG", "WEBP")


def decode_image(file: BinaryIO, job: Job) -> bytes:
    """
    Returns:
        uint8 [3, size, size].

    Raises:
        BadMediaError: It is no image that can be used.
    """
    assert job.shape is not None
    # The limit on pixels is ours, below, and comes before anything is decoded.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(), Image.open(file, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            check_size(image.width, image.height, job.limits)
            upright = ImageOps.exif_transpose(image)
            return to_square(upright.convert("RGB"), job.shape)
    except UnidentifiedImageError:
        raise BadMediaError(MediaProblem.NOT_AN_IMAGE, "it is no JPEG, PNG or WebP image") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _problem(error) from error


def _problem(error: Exception) -> BadMediaError:
    text = str(error).lower()
    if "truncated" in text or "unexpected end" in text:
        return BadMediaError(MediaProblem.TRUNCATED, "its end is missing")
    if "too large" in text:
        return BadMediaError(MediaProblem.DECODE_BOMB, "it takes more memory than images may take")
    return BadMediaError(MediaProblem.CORRUPT, "it is damaged")
