"""Page tokens of plain lists: a position, made opaque so that nobody builds on its form."""

import base64
import binascii

from keek_server.errors import InvalidArgumentError


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
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidArgumentError.of("page_token", "is not a token of this service") from error
    if "\0" in position:
        # No id holds one, and PostgreSQL takes none in a text.
        raise InvalidArgumentError.of("page_token", "is not a token of this service")
    return position


def decode_offset(token: str, limit: int) -> int:
    """The offset in a token of a list that is paged by number; 0 for the first page.

    Raises:
        InvalidArgumentError: When it is no such token, or beyond `limit`.
    """
    position = decode_token(token) or "0"
    if not position.isdecimal() or int(position) > limit:
        raise InvalidArgumentError.of("page_token", "is not a token of this service")
    return int(position)
