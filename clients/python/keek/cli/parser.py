"""The commands of `keek` and their options."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from keek.channel import VERSION
from keek.cli import catalogue, commands, searching
from keek.cli.importing import DESCRIPTION, import_videos
from keek.cli.importing.rows import split_tags
from keek.client import Client

DEFAULT_TARGET: Final = "localhost:50051"

_INT32_MAX: Final = (1 << 31) - 1

Command = Callable[[Client, argparse.Namespace], int]


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `run` of what it gives is the command."""
    parser = argparse.ArgumentParser("keek", description="Feeds of short videos, and what changes them.")
    parser.add_argument("--version", action="version", version=f"keek {VERSION}")
    _add_common(parser)
    parser.set_defaults(target=os.environ.get("KEEK_TARGET") or DEFAULT_TARGET, timeout_s=None, json=False)
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Command, summary: str, description: str = "") -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=summary, description=description or f"{summary}.")
        _add_common(added)
        added.set_defaults(run=run)
        return added

    _add_feeds(command)
    _add_interactions(command)
    _add_videos(command)
    _add_search(command)
    return parser


Adder = Callable[..., argparse.ArgumentParser]


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Options that may stand before the command and behind it."""
    # Without a default of their own: behind the command it would win over what stood before it.
    parser.add_argument(
        "--target",
        default=argparse.SUPPRESS,
        help=f"host:port of the server; $KEEK_TARGET, or {DEFAULT_TARGET}, when not given",
    )
    parser.add_argument(
        "--timeout-s", type=_seconds, default=argparse.SUPPRESS, help="deadline of each call, in seconds"
    )
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object a line"
    )


def _add_feeds(command: Adder) -> None:
    feed = command("feed", commands.feed, "A user's feed")
    feed.add_argument("user", metavar="USER", type=_id)
    feed.add_argument("--count", type=_positive, default=10, help="items wanted (10)")
    feed.add_argument("--page-size", type=_positive, help="items asked for at a time")
    feed.add_argument("--stream", action="store_true", help="all pages in one call, shown as they come")
    explain = command("explain", commands.explain, "Why videos are in a user's feed or absent")
    explain.add_argument("user", metavar="USER", type=_id)
    explain.add_argument("videos", metavar="VIDEO", type=_id, nargs="*")
    explain.add_argument("--page-size", type=_positive, default=10, help="items of the feed (10)")
    trending = command("trending", commands.trending, "What many users like at the moment")
    trending.add_argument("--count", type=_positive, default=10, help="videos wanted (10)")
    trending.add_argument("--rising", action="store_true", help="by how fast it grows, not how much it is")
    scope = trending.add_mutually_exclusive_group()
    scope.add_argument("--tag", type=_id, default="", help="only among videos of this tag")
    scope.add_argument("--region", type=_id, default="", help="only what is liked in this region")
    trending.add_argument("--watch", action="store_true", help="the list again at each change, until Ctrl-C")


def _add_interactions(command: Adder) -> None:
    for kind in ("like", "save", "view", "share", "skip"):
        record = command(kind, commands.record, f"Records a {kind}")
        record.add_argument("user", metavar="USER", type=_id)
        record.add_argument("video", metavar="VIDEO", type=_id)
        record.add_argument("--event-id", type=_id, help="UUID of an interaction that is recorded again")
        record.add_argument("--region", type=_id, default="", help="where it happened")
        record.add_argument(
            "--wait-for-feed", action="store_true", help="return when the next feed reflects it"
        )


def _add_videos(command: Adder) -> None:
    _add_catalogue(command("videos", catalogue.videos, "The catalogue, or an import into it"))
    video = command("video", catalogue.video, "One video's metadata")
    video.add_argument("video", metavar="VIDEO", type=_id)
    upload = command("upload", catalogue.upload, "Uploads a video's file")
    upload.add_argument("file", metavar="FILE", type=Path)
    upload.add_argument("--id", type=_id, help="its video_id; made when not given")
    upload.add_argument("--wait", action="store_true", help="show its states until it is recommendable")
    update = command("update", catalogue.update, "Changes a video's metadata")
    update.add_argument("video", metavar="VIDEO", type=_id)
    update.add_argument("--duration-s", type=_number)
    for changing in (upload, update):
        changing.add_argument("--owner", type=_id)
        changing.add_argument("--tags", type=_tags, help="separated by commas")
        changing.add_argument("--title", type=_id)
    delete = command("delete", catalogue.delete, "Removes a video from every feed, and its file")
    delete.add_argument("video", metavar="VIDEO", type=_id)


def _add_catalogue(videos: argparse.ArgumentParser) -> None:
    videos.add_argument("--owner", type=_id, default="", help="only this owner's videos")
    videos.add_argument("--count", type=_positive, help="videos wanted (all)")
    actions = videos.add_subparsers(title="actions", metavar="[import PATH]")
    importer = actions.add_parser("import", help="imports a folder or a table", description=DESCRIPTION)
    _add_common(importer)
    importer.set_defaults(run=import_videos)
    importer.add_argument("path", metavar="PATH", type=Path)
    importer.add_argument("--jobs", type=_positive, default=4, help="uploads or batches at a time (4)")
    # Its default is the listing's, which one before `import` has set.
    importer.add_argument("--owner", type=_id, default=argparse.SUPPRESS, help="of a folder's videos")
    importer.add_argument("--tags", type=_tags, default=[], help="of a folder's videos, separated by commas")
    importer.add_argument(
        "--clip-model", type=_id, default="", help="the CLIP that a table's clip vectors are from"
    )
    importer.add_argument("--restart", action="store_true", help="begin anew, also what was cut off")


def _add_search(command: Adder) -> None:
    search = command("search", searching.search, "Videos that look like a text, an image or a video")
    query = search.add_mutually_exclusive_group(required=True)
    query.add_argument("text", metavar="TEXT", type=_query, nargs="?")
    query.add_argument("--image", metavar="FILE", type=Path, help="a JPEG, PNG or WebP file")
    query.add_argument("--like", metavar="VIDEO", type=_query, help="another video")
    similar = command("similar", searching.similar, "Videos that the same people like")
    similar.add_argument("video", metavar="VIDEO", type=_id)
    audience = command("audience", searching.audience, "The users who like a video best")
    audience.add_argument("video", metavar="VIDEO", type=_id)
    for finding in (search, similar, audience):
        finding.add_argument("--count", type=_positive, default=20, help="wanted (20)")
    for filtering in (search, similar):
        filtering.add_argument("--tags", type=_tags, default=[], help="at least one of these, by commas")
        filtering.add_argument("--owner", type=_id, default="", help="only this owner's videos")
        filtering.add_argument("--min-duration-s", type=_number, default=0.0)
        filtering.add_argument("--max-duration-s", type=_number, default=0.0)
        filtering.add_argument("--max-age-s", type=_number, default=0.0, help="since it was created")


def _id(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not valid UTF-8") from None
    return text


def _positive(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _INT32_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # Also false for NaN. gRPC counts deadlines in 64-bit nanoseconds.
    if not 0.0 < seconds <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # Also false for NaN.
    if not 0.0 <= number <= 1e12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def _query(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return _id(text)


def _tags(text: str) -> list[str]:
    try:
        return split_tags(_id(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
