"""The kinds of interaction, numbered as in `keek.v1.InteractionKind`, and what trending is kept for."""

from enum import IntEnum, StrEnum


class InteractionKind(IntEnum):
    """What a user did with a video. 0 is kept free: it pads histories."""

    VIEW = 1
    LIKE = 2
    SAVE = 3
    SHARE = 4
    SKIP = 5


KINDS = {int(kind): kind for kind in InteractionKind}
"""By number: on the way of every interaction, an enum is slow to look up by value."""


class TrendingScope(StrEnum):
    """What trending is kept for, beside everything."""

    TAG = "tag"
    REGION = "region"

    def of(self, value: str) -> str:
        """The scope of one tag or region."""
        return f"{self.value}:{value}"


EVERYTHING = ""
"""The scope of all interactions."""
