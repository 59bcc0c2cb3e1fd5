"""The commands of `keek` and their options."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from keek.channel import VERSION
from keek.cli import catalogue, commands, searching
from keek.cli.arguments import (
    DEFAULT_TARGET,
    add_common,
    add_conditions,
    identifier,
    names,
    number,
    positive,
    query,
    tags,
)
from keek.cli.experiments_parser import add_experiments
from keek.cli.importing import DESCRIPTION, import_videos
from keek.cli.releases_parser import add_releases
from keek.client import Client

Command = Callable[[Client, argparse.Namespace], int]


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `run` of what it gives is the command."""
    parser = argparse.ArgumentParser("keek", description="Feeds of short videos, and what changes them.")
    parser.add_argument("--version", action="version", version=f"keek {VERSION}")
    add_common(parser)
    parser.set_defaults(
        target=os.environ.get("KEEK_TARGET") or DEFAULT_TARGET, timeout_s=None, json=False, admin=False
    )
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Command, summary: str, description: str = "") -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=summary, description=description or f"{summary}.")
        add_common(added)
        added.set_defaults(run=run)
        return added

    _add_feeds(command)
    _add_interactions(command)
    _add_videos(command)
    _add_search(command)
    add_releases(command)
    add_experiments(command)
    return parser


Adder = Callable[..., argparse.ArgumentParser]


def _add_feeds(command: Adder) -> None:
    feed = command("feed", commands.feed, "A user's feed")
    feed.add_argument("user", metavar="USER", type=identifier)
    feed.add_argument("--count", type=positive, default=10, help="items wanted (10)")
    feed.add_argument("--page-size", type=positive, help="items asked for at a time")
    feed.add_argument("--stream", action="store_true", help="all pages in one call, shown as they come")
    explain = command("explain", commands.explain, "Why videos are in a user's feed or absent")
    explain.add_argument("user", metavar="USER", type=identifier)
    explain.add_argument("videos", metavar="VIDEO", type=identifier, nargs="*")
    explain.add_argument("--page-size", type=positive, default=10, help="items of the feed (10)")
    for asking in (feed, explain):
        add_conditions(asking)
        asking.add_argument("--blocked", type=names, default=[], metavar="OWNERS", help="owners, by commas")
    trending = command("trending", commands.trending, "What many users like at the moment")
    trending.add_argument("--count", type=positive, default=10, help="videos wanted (10)")
    trending.add_argument("--rising", action="store_true", help="by how fast it grows, not how much it is")
    scope = trending.add_mutually_exclusive_group()
    scope.add_argument("--tag", type=identifier, default="", help="only among videos of this tag")
    scope.add_argument("--region", type=identifier, default="", help="only what is liked in this region")
    trending.add_argument("--watch", action="store_true", help="the list again at each change, until Ctrl-C")


def _add_interactions(command: Adder) -> None:
    for kind in ("like", "save", "view", "share", "skip"):
        record = command(kind, commands.record, f"Records a {kind}")
        record.add_argument("user", metavar="USER", type=identifier)
        record.add_argument("video", metavar="VIDEO", type=identifier)
        record.add_argument(
            "--event-id", type=identifier, help="UUID of an interaction that is recorded again"
        )
        record.add_argument("--region", type=identifier, default="", help="where it happened")
        record.add_argument(
            "--wait-for-feed", action="store_true", help="return when the next feed reflects it"
        )
        record.set_defaults(watched_s=None)
        if kind in ("view", "skip"):
            record.add_argument("--watched-s", type=number, help="how long it was watched, in seconds")


def _add_videos(command: Adder) -> None:
    _add_catalogue(command("videos", catalogue.videos, "The catalogue, or an import into it"))
    video = command("video", catalogue.video, "One video's metadata")
    video.add_argument("video", metavar="VIDEO", type=identifier)
    upload = command("upload", catalogue.upload, "Uploads a video's file")
    upload.add_argument("file", metavar="FILE", type=Path)
    upload.add_argument("--id", type=identifier, help="its video_id; made when not given")
    upload.add_argument("--wait", action="store_true", help="show its states until it is recommendable")
    update = command("update", catalogue.update, "Changes a video's metadata")
    update.add_argument("video", metavar="VIDEO", type=identifier)
    update.add_argument("--duration-s", type=number)
    for changing in (upload, update):
        changing.add_argument("--owner", type=identifier)
        changing.add_argument("--tags", type=tags, help="separated by commas")
        changing.add_argument("--title", type=identifier)
        changing.add_argument("--language", type=identifier, help="a BCP 47 tag, as pt-BR")
        changing.add_argument("--region", type=identifier)
    delete = command("delete", catalogue.delete, "Removes a video from every feed, and its file")
    delete.add_argument("video", metavar="VIDEO", type=identifier)


def _add_catalogue(videos: argparse.ArgumentParser) -> None:
    videos.add_argument("--owner", type=identifier, default="", help="only this owner's videos")
    videos.add_argument("--count", type=positive, help="videos wanted (all)")
    actions = videos.add_subparsers(title="actions", metavar="[import PATH]")
    importer = actions.add_parser("import", help="imports a folder or a table", description=DESCRIPTION)
    add_common(importer)
    importer.set_defaults(run=import_videos)
    importer.add_argument("path", metavar="PATH", type=Path)
    importer.add_argument("--jobs", type=positive, default=4, help="uploads or batches at a time (4)")
    # Its default is the listing's, which one before `import` has set.
    importer.add_argument("--owner", type=identifier, default=argparse.SUPPRESS, help="of a folder's videos")
    importer.add_argument("--tags", type=tags, default=[], help="of a folder's videos, separated by commas")
    importer.add_argument("--language", type=identifier, default="", help="of a folder's videos")
    importer.add_argument("--region", type=identifier, default="", help="of a folder's videos")
    importer.add_argument(
        "--clip-model", type=identifier, default="", help="the CLIP that a table's clip vectors are from"
    )
    importer.add_argument("--restart", action="store_true", help="begin anew, also what was cut off")


def _add_search(command: Adder) -> None:
    search = command("search", searching.search, "Videos that look like a text, an image or a video")
    wanted = search.add_mutually_exclusive_group(required=True)
    wanted.add_argument("text", metavar="TEXT", type=query, nargs="?")
    wanted.add_argument("--image", metavar="FILE", type=Path, help="a JPEG, PNG or WebP file")
    wanted.add_argument("--like", metavar="VIDEO", type=query, help="another video")
    similar = command("similar", searching.similar, "Videos that the same people like")
    similar.add_argument("video", metavar="VIDEO", type=identifier)
    audience = command("audience", searching.audience, "The users who like a video best")
    audience.add_argument("video", metavar="VIDEO", type=identifier)
    for finding in (search, similar, audience):
        finding.add_argument("--count", type=positive, default=20, help="wanted (20)")
    for filtering in (search, similar):
        add_conditions(filtering)
