"""Commands on the catalogue: what is in it, one video, its file and its metadata."""

import argparse
import itertools
from typing import Final

from keek.cli.importing.files import digest
from keek.cli.output import Table, note, print_json, printable
from keek.cli.progress import Progress, Share
from keek.client import Client
from keek.errors import NotFoundError
from keek.uploads import identified, upload_id_of
from keek.v1.video_service_pb2 import Video, VideoState, WatchVideoResponse

CHUNK: Final = 1000
"""Videos on one page of a list, as the contract has it."""


def videos(client: Client, arguments: argparse.Namespace) -> int:
    """The catalogue, or one owner's part of it."""
    everything = client.iter_videos(
        owner_id=arguments.owner,
        page_size=min(arguments.count or CHUNK, CHUNK),
        timeout_s=arguments.timeout_s,
    )
    left = itertools.islice(everything, arguments.count)
    table = Table("VIDEO", "OWNER", "SECONDS", "CREATED", "LANGUAGE", "REGION", "TAGS", "TITLE")
    while chunk := list(itertools.islice(left, CHUNK)):
        if arguments.json:
            for video in chunk:
                print_json(video)
        else:
            table.add(map(_video_row, chunk))
    return 0


def _video_row(video: Video) -> tuple[str, str, float, str, str, str, str, str]:
    return (
        video.video_id,
        video.owner_id,
        video.duration_s,
        video.create_time.ToJsonString() if video.HasField("create_time") else "",
        video.language,
        video.region,
        " ".join(video.tags),
        video.title,
    )


def video(client: Client, arguments: argparse.Namespace) -> int:
    """One video's metadata."""
    found = client.get_video(arguments.video, timeout_s=arguments.timeout_s)
    if arguments.json:
        print_json(found)
    else:
        _print_video(found)
    return 0


def _print_video(video: Video) -> None:
    names = ("video", "owner", "seconds", "created", "language", "region", "tags", "title")
    lines = dict(zip(names, map(str, _video_row(video)), strict=True))
    if video.state:
        lines["state"] = state_name(video.state)
    if video.original_url:
        lines |= {"size": f"{video.width}x{video.height}", "file": video.original_url}
    if video.poster_url:
        lines["poster"] = video.poster_url
    for name, value in lines.items():
        print(f"{name:8} {printable(value)}".rstrip(), flush=True)


def state_name(state: VideoState.ValueType) -> str:
    """`ready` for VIDEO_STATE_READY; the number of a state newer than this client."""
    if state not in VideoState.values():
        return str(state)
    return VideoState.Name(state).removeprefix("VIDEO_STATE_").lower()


def upload(client: Client, arguments: argparse.Namespace) -> int:
    """One file; with `--wait` until the video is recommendable. 1 when it is rejected after all."""
    video = identified(
        Video(
            video_id=arguments.id or "",
            owner_id=arguments.owner or "",
            tags=arguments.tags or (),
            title=arguments.title or "",
            language=arguments.language or "",
            region=arguments.region or "",
        )
    )
    # Under an id of the caller's own, the same command goes on with what was cut off.
    upload_id = upload_id_of(video.video_id, digest(arguments.file)) if arguments.id else None
    try:
        stored = _send(client, video, upload_id, arguments)
    except NotFoundError:
        # It was uploaded before, and deleted.
        stored = _send(client, video, None, arguments)
    if arguments.wait:
        return _wait(client, stored, arguments)
    _show(stored, arguments)
    return 0


def _send(client: Client, video: Video, upload_id: str | None, arguments: argparse.Namespace) -> Video:
    with Progress(arguments.file.stat().st_size, "B") as progress:
        return client.upload_video(
            arguments.file,
            video,
            upload_id=upload_id,
            progress=Share(progress).sent,
            timeout_s=arguments.timeout_s,
        )


def _wait(client: Client, stored: Video, arguments: argparse.Namespace) -> int:
    """Shows the states of a video until its last one, then the video."""
    now = WatchVideoResponse()
    for now in client.watch_video(stored.video_id, timeout_s=arguments.timeout_s):
        note(f"{state_name(now.state)}: {now.reason}" if now.reason else state_name(now.state))
    if now.state == VideoState.VIDEO_STATE_REJECTED:
        return 1
    _show(client.get_video(stored.video_id, timeout_s=arguments.timeout_s), arguments)
    return 0


def _show(video: Video, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(video)
    else:
        _print_video(video)


def update(client: Client, arguments: argparse.Namespace) -> int:
    """Changes the metadata that options name; shows the video as it is then."""
    given = {
        "owner_id": arguments.owner,
        "tags": arguments.tags,
        "duration_s": arguments.duration_s,
        "title": arguments.title,
        "language": arguments.language,
        "region": arguments.region,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if not fields:
        note("keek: nothing to change: give --owner, --tags, --duration-s, --title, --language or --region")
        return 2
    video = Video(video_id=arguments.video, **fields)
    _show(client.update_video(video, fields, timeout_s=arguments.timeout_s), arguments)
    return 0


def delete(client: Client, arguments: argparse.Namespace) -> int:
    """Removes one video, and its file."""
    client.delete_video(arguments.video, timeout_s=arguments.timeout_s)
    if arguments.json:
        print_json({"video_id": arguments.video})
    else:
        print(f"{printable(arguments.video)} deleted", flush=True)
    return 0
