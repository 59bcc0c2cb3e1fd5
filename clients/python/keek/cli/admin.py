"""The admin token, for the commands that need it."""

import argparse
import os
from pathlib import Path
from typing import Final

from keek.channel import bearer_metadata

HINT: Final = "--admin-token-file, KEEK_ADMIN_TOKEN or KEEK_ADMIN_TOKEN_FILE"
"""Where it comes from."""


class BadTokenError(Exception):
    """What was given is no token; the message says where it came from."""


def add_admin(parser: argparse.ArgumentParser) -> None:
    """For a command that needs the token."""
    parser.set_defaults(admin=True)
    parser.add_argument(
        "--admin-token-file",
        metavar="FILE",
        type=Path,
        help="holds the admin token; $KEEK_ADMIN_TOKEN, or the file $KEEK_ADMIN_TOKEN_FILE, when not given",
    )


def admin_token(arguments: argparse.Namespace) -> str | None:
    """The token for this command; None when it needs none, or when there is none.

    A file that is named wins over the variable with the token, which wins over the variable with
    a file's name.

    Raises:
        OSError: The file cannot be read.
        BadTokenError: It holds no token.
    """
    if not arguments.admin:
        return None
    path, given = arguments.admin_token_file, os.environ.get("KEEK_ADMIN_TOKEN")
    if path is None and given:
        return _checked(given, "KEEK_ADMIN_TOKEN")
    if path is None:
        path = os.environ.get("KEEK_ADMIN_TOKEN_FILE")
    return _checked(Path(path).read_text(errors="replace"), str(path)) if path else None


def _checked(text: str, origin: str) -> str:
    token = text.strip()
    try:
        bearer_metadata(token)
    except ValueError as error:
        raise BadTokenError(f"{origin}: {error}") from None
    return token
