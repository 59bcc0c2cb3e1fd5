"""Square pictures are those of open_clip's own transform, to the last bit."""

import subprocess
import sys
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from keek_server.videos.decoding.squares import to_square
from keek_server.videos.decoding.types import FrameShape, Interpolation, ResizeMode

_SIZES = [
    (320, 240),
    (240, 320),
    (641, 359),
    (359, 641),
    (224, 224),
    (100, 37),
    (37, 100),
    (1920, 817),
    (30, 500),
]


def _picture(size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(size[0] * 1000 + size[1])
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8))


def _square(image: Image.Image, shape: FrameShape) -> Any:
    return np.frombuffer(to_square(image, shape), np.uint8).reshape(3, shape.size, shape.size)


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("mode", get_args(ResizeMode))
@pytest.mark.parametrize("side", [224, 33])
def test_squares_equal_those_of_open_clip(side: int, mode: ResizeMode, interpolation: Interpolation) -> None:
    open_clip = pytest.importorskip("open_clip", reason="needs the extra keek[clip]")
    settings = {"size": side, "mean": (0, 0, 0), "std": (1, 1, 1)}
    config = open_clip.transform.PreprocessCfg(**settings, resize_mode=mode, interpolation=interpolation)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    for size in _SIZES:
        theirs = transform(_picture(size)).numpy()
        ours = _square(_picture(size), FrameShape(side, mode, interpolation))
        np.testing.assert_array_equal(ours, np.rint(theirs * 255).astype(np.uint8), str(size))


def test_the_middle_is_kept_of_what_is_too_wide() -> None:
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    square = _square(image, FrameShape(30))
    assert square.reshape(3, -1).max(axis=1).tolist() == [0, 0, 255]


def test_what_is_too_narrow_gets_black_at_its_sides_when_the_longest_side_counts() -> None:
    square = _square(Image.new("RGB", (30, 90), "red"), FrameShape(30, "longest"))
    assert square[0, :, 10:20].min() == 255
    assert square[:, :, :10].max() == square[:, :, 20:].max() == 0


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("size", [(4096, 4), (4, 4096), (1500, 64), (2000, 31)])
def test_the_middle_of_a_long_strip_is_as_if_all_of_it_were_resized(
    size: tuple[int, int], interpolation: Interpolation
) -> None:
    side = 64
    image = _picture(size)
    long = max(size) * side // min(size)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    whole = image.resize((long, side) if size[0] > size[1] else (side, long), filters[interpolation])
    left, top = (round((length - side) / 2) for length in whole.size)
    expected = np.asarray(whole.crop((left, top, left + side, top + side))).transpose(2, 0, 1)
    ours = _square(image, FrameShape(side, "shortest", interpolation))
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_a_strip_takes_no_more_memory_than_its_square() -> None:
    """All of it would be 917,504 pixels of four bytes wide, and 224 high."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _STRIP], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == f"{3 * 224 * 224}\n", done.stderr


_STRIP = """
from PIL import Image
from keek_server.videos.decoding.sandbox import close_sandbox
from keek_server.videos.decoding.squares import to_square
from keek_server.videos.decoding.types import FrameShape
strip = Image.new("RGB", (4096, 1), "red")
to_square(strip.resize((9, 9)), FrameShape(224))  # what is imported on the first use
close_sandbox(memory_mb=64, cpu_s=5)
print(len(to_square(strip, FrameShape(224))))
"""
