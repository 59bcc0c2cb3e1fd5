"""Options that all commands of `keek` have, and the types of arguments."""

import argparse
from typing import Final

from keek.cli.importing.rows import clean_tags, split_tags
from keek.queries import Conditions

DEFAULT_TARGET: Final = "localhost:50051"

_INT32_MAX: Final = (1 << 31) - 1

_MAX_HOURS: Final = 720.0
"""Of a report's window, as the contract has it."""


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options that may stand before the command and behind it."""
    # Without a default of their own: behind the command it would win over what stood before it.
    parser.add_argument(
        "--target",
        default=argparse.SUPPRESS,
        help=f"host:port of the server; $KEEK_TARGET, or {DEFAULT_TARGET}, when not given",
    )
    parser.add_argument(
        "--timeout-s", type=seconds, default=argparse.SUPPRESS, help="deadline of each call, in seconds"
    )
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object a line"
    )


def identifier(text: str) -> str:
    """Any text that can be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not valid UTF-8") from None
    return text


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if not (text.isdecimal() and 1 <= int(text) <= _INT32_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """A time that a call may take."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # Also false for NaN. gRPC counts deadlines in 64-bit nanoseconds.
    if not 0.0 < value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def number(text: str) -> float:
    """A number of seconds, or 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    # Also false for NaN.
    if not 0.0 <= value <= 1e12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def hours(text: str) -> float:
    """A time that a report may look back."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # Also false for NaN.
    if not 0.0 < value <= _MAX_HOURS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours of at most {_MAX_HOURS:g}")
    return value


def query(text: str) -> str:
    """A text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return identifier(text)


def tags(text: str) -> list[str]:
    """Tags, separated by commas."""
    try:
        return split_tags(identifier(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def names(text: str) -> list[str]:
    """Languages or regions, separated by commas."""
    return clean_tags(identifier(text).split(","))


def percentage(text: str) -> float:
    """A share in percent, above 0."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0.0
    # Also false for NaN.
    if not 0.0 < value <= 100.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage above 0")
    return value


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """What videos must meet; read by `conditions`."""
    parser.add_argument("--tags", type=tags, default=[], help="at least one of these, by commas")
    parser.add_argument("--owner", type=identifier, default="", help="only this owner's videos")
    parser.add_argument("--min-duration-s", type=number, default=0.0)
    parser.add_argument("--max-duration-s", type=number, default=0.0)
    parser.add_argument("--max-age-s", type=number, default=0.0, help="since it was created")
    parser.add_argument(
        "--languages", type=names, default=[], help="one of these, by commas; pt is met by pt-BR, too"
    )
    parser.add_argument("--regions", type=names, default=[], help="one of these, by commas")


def conditions(arguments: argparse.Namespace) -> Conditions:
    """What was asked with the arguments that `add_conditions` adds."""
    return Conditions(
        tags=arguments.tags,
        owner_id=arguments.owner,
        min_duration_s=arguments.min_duration_s,
        max_duration_s=arguments.max_duration_s,
        max_age_s=arguments.max_age_s,
        languages=arguments.languages,
        regions=arguments.regions,
    )
