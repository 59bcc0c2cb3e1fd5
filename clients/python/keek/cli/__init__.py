"""The command line `keek`."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Final

from keek.cli.admin import HINT, BadTokenError, admin_token
from keek.cli.documents import BadDocumentError
from keek.cli.output import note, problem
from keek.cli.parser import make_parser
from keek.client import Client
from keek.errors import (
    CallError,
    DeadlineExceededError,
    FileChangedError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnavailableError,
)

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells have it."""
EXIT_BROKEN_PIPE: Final = 141
"""128 and the number of SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    arguments = make_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without UTF-8 shows what it cannot show as escapes, instead of failing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        # What was printed before an error.
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough.
        _drop_output()
        return EXIT_BROKEN_PIPE
    except OSError:
        # The disk is full, as `_run` has said, or could not say either.
        _drop_output()
        return EXIT_FAILED
    return code


def _drop_output() -> None:
    """Python would flush what is left once more at exit, complain, and set another exit code."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nothing, stream.fileno())


def _run(arguments: argparse.Namespace) -> int:
    try:
        with Client(arguments.target, admin_token=admin_token(arguments)) as client:
            code: int = arguments.run(client, arguments)
            # Here, where it is handled, and not at exit, when the disk is full or the reader has gone.
            sys.stdout.flush()
            return code
    except CallError as error:
        note(f"keek: {_explained(error, arguments.target)}")
    except (FileChangedError, BadTokenError, BadDocumentError) as error:
        note(f"keek: {error}")
    except BrokenPipeError:
        raise
    except OSError as error:
        note(f"keek: {error.filename}: {error.strerror}" if error.filename else f"keek: {error}")
    return EXIT_FAILED


def _explained(error: CallError, target: str) -> str:
    """The error on one line, with what to do about it."""
    name = error.code.name
    if isinstance(error, InvalidArgumentError):
        # A reason of its own, as TRUNCATED, says more than the code.
        text = problem(error)
        return text if text.startswith(f"{error.reason}: ") and error.reason else f"{name}: {text}"
    if isinstance(error, PermissionDeniedError):
        return f"{name}: {error.message} ({HINT})"
    if isinstance(error, UnavailableError):
        if not error.details.reason:
            # Not from a Keek server, which gives a reason: nothing answers there.
            return f"{name}: no server answers at {target} (--target or KEEK_TARGET): {error.message}"
        if error.retry_after_s is not None:
            return f"{name}: {error.message}; try again in {error.retry_after_s:g} s"
    if isinstance(error, DeadlineExceededError):
        return f"{name}: no answer from {target} in time; --timeout-s gives it longer"
    return f"{name}: {error.message}"
