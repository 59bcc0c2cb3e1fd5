"""Chooses among frames: every scene is to be seen, the rest evenly spread, nothing blank."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from PIL import Image, ImageChops, ImageStat

_CUT = 0.30
"""Difference of neighbours, in [0, 1], from which on they are two scenes, whatever the rest does."""
_CALM_CUT = 0.15
_TIMES_MEDIAN = 4.0
"""A smaller difference is a cut as well where it stands out of a video that moves little."""
_BINS = 16
_BLANK_SPREAD = 6.0
_BLANK_COLOUR = 12.0


def is_blank(thumbnail: Image.Image) -> bool:
    """Whether nothing is to be seen: black, white or grey all over."""
    stat = ImageStat.Stat(thumbnail)
    return max(stat.stddev) < _BLANK_SPREAD and max(stat.mean) - min(stat.mean) < _BLANK_COLOUR


def interest(thumbnail: Image.Image) -> float:
    """How much there is to see: contrast and colour. For a poster, more is better."""
    stat = ImageStat.Stat(thumbnail)
    saturation = ImageStat.Stat(thumbnail.convert("HSV").getchannel("S")).mean[0]
    return sum(stat.stddev) / 3 + 0.25 * saturation


def difference(one: Image.Image, other: Image.Image) -> float:
    """In [0, 1]: the mean of what differs in place and what differs in the share of each shade."""
    place = sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3 / 255
    ours, theirs = _shades(one), _shades(other)
    pixels = one.width * one.height
    shade = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / (2 * 3 * pixels)
    return (place + shade) / 2


def _shades(image: Image.Image) -> list[int]:
    histogram = image.histogram()
    step = 256 // _BINS
    return [sum(histogram[i : i + step]) for i in range(0, len(histogram), step)]


def choose(thumbnails: Sequence[Image.Image], count: int) -> list[int]:
    """The positions of at most `count` thumbnails, ascending; the same for the same thumbnails.

    Args:
        thumbnails: Of one size, in order of time, at about equal distances.
    """
    usable = [i for i, one in enumerate(thumbnails) if not is_blank(one)] or [*range(len(thumbnails))]
    scenes = _scenes(thumbnails, usable)
    shares = _share([len(scene) for scene in scenes], min(count, len(usable)))
    return [i for scene, share in zip(scenes, shares, strict=True) for i in _spread(scene, share)]


def _scenes(thumbnails: Sequence[Image.Image], usable: list[int]) -> list[list[int]]:
    changes = [difference(thumbnails[one], thumbnails[next_one]) for one, next_one in pairwise(usable)]
    cut = min(_CUT, max(_CALM_CUT, _TIMES_MEDIAN * median(changes))) if changes else _CUT
    scenes = [usable[:1]]
    for here, change in zip(usable[1:], changes, strict=True):
        if change >= cut:
            scenes.append([])
        scenes[-1].append(here)
    return scenes


def _share(lengths: list[int], count: int) -> list[int]:
    """How many of `count` each scene gets: first one each, the longest first, then by length.

    What is left goes one by one to the scene with the fewest for its length (D'Hondt's method).
    """
    shares = [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i])[:count]:
        shares[i] = 1
    for _ in range(count - sum(shares)):
        open_ones = [i for i, length in enumerate(lengths) if shares[i] < length]
        shares[max(open_ones, key=lambda i: lengths[i] / (shares[i] + 1))] += 1
    return shares


def _spread(scene: list[int], count: int) -> list[int]:
    """The middles of `count` equal parts."""
    return [scene[int((i + 0.5) * len(scene) / count)] for i in range(count)]
