"""The kinds of interaction, numbered as in `keek.v1.InteractionKind`."""

from enum import IntEnum


class InteractionKind(IntEnum):
    """What a user did with a video. 0 is kept free: it pads histories."""

    VIEW = 1
    LIKE = 2
    SAVE = 3
    SHARE = 4
    SKIP = 5
