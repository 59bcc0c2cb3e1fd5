"""Page tokens of plain lists: a position, made opaque so that nobody builds on its form."""

import base64
from typing import Final

from keek_server.errors import InvalidArgumentError

_TIME_DIGITS: Final = 19
"""Fewer fit into 64 bits."""


def encode_token(position: str) -> str:
    """The token for the page behind `position`."""
    return base64.urlsafe_b64encode(position.encode()).decode()


def decode_token(token: str) -> str:
    """The position in a token; empty for the first page.

    Raises:
        InvalidArgumentError: When it is no token.
    """
    try:
        position = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        # Of base64, of UTF-8, and the plain one for a token that is not ASCII.
        raise InvalidArgumentError.of("page_token", "is not a token of this service") from error
    if "\0" in position:
        # No id holds one, and PostgreSQL takes none in a text.
        raise InvalidArgumentError.of("page_token", "is not a token of this service")
    return position


def encode_position(time_us: int, id_: str) -> str:
    """The token for what comes behind a time and, at that, an id."""
    return encode_token(f"{time_us} {id_}")


def decode_position(token: str) -> tuple[int, str] | None:
    """The time and the id in a token; None for the first page.

    Raises:
        InvalidArgumentError: When it is no such token.
    """
    if not token:
        return None
    time_us, _, id_ = decode_token(token).partition(" ")
    if not (time_us.isdecimal() and len(time_us) < _TIME_DIGITS and id_):
        raise InvalidArgumentError.of("page_token", "is not a token of this service")
    return int(time_us), id_


def decode_offset(token: str, limit: int) -> int:
    """The offset in a token of a list that is paged by number; 0 for the first page.

    Raises:
        InvalidArgumentError: When it is no such token, or beyond `limit`.
    """
    position = decode_token(token) or "0"
    if not position.isdecimal() or int(position) > limit:
        raise InvalidArgumentError.of("page_token", "is not a token of this service")
    return int(position)
