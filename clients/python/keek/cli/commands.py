"""What each command of `keek` asks the server, and how the answer looks."""

import argparse
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Final

from keek.cli.arguments import conditions
from keek.cli.output import Table, note_degradations, print_json, printable, source_name
from keek.client import Client
from keek.v1.feed_service_pb2 import ExplainFeedResponse, FeedItem, ListFeedResponse, StreamFeedResponse
from keek.v1.interaction_service_pb2 import InteractionKind
from keek.v1.trending_service_pb2 import TrendingVideo
from keek.v1.video_filter_pb2 import VideoFilter

MAX_PAGE_SIZE: Final = 100
"""Items on one page of a feed, as the contract has it."""

CHUNK: Final = 1000
"""Videos on one page of a list, as the contract has it."""

WATCH_S: Final = 1e9
"""Deadline of a watch that is not given one: it goes on until Ctrl-C."""


def feed(client: Client, arguments: argparse.Namespace) -> int:
    """A user's feed, up to `--count` items."""
    table = _feed_table(arguments.count)
    shown = 0
    for page in _streamed(client, arguments) if arguments.stream else _listed(client, arguments):
        if arguments.json:
            print_json(page)
            continue
        table.add(_feed_row(place, item) for place, item in enumerate(page.items, shown + 1))
        note_degradations(page.degradations)
        shown += len(page.items)
    return 0


def _page_size(arguments: argparse.Namespace) -> int:
    return int(arguments.page_size or min(arguments.count, MAX_PAGE_SIZE))


def _listed(client: Client, arguments: argparse.Namespace) -> Iterator[ListFeedResponse]:
    """One call a page, the last one for as many items as are left."""
    left, token = arguments.count, ""
    while left > 0:
        page = client.list_feed(
            arguments.user,
            page_size=min(_page_size(arguments), left),
            page_token=token,
            video_filter=VideoFilter(**conditions(arguments)),
            blocked_owner_ids=arguments.blocked,
            timeout_s=arguments.timeout_s,
        )
        yield page
        left -= len(page.items)
        token = page.next_page_token
        if not token or not page.items:
            return


def _streamed(client: Client, arguments: argparse.Namespace) -> Iterator[StreamFeedResponse]:
    """One call; of the last page only what `--count` leaves room for."""
    left, page_size = arguments.count, _page_size(arguments)
    pages = client.stream_feed(
        arguments.user,
        page_count=math.ceil(left / page_size),
        page_size=page_size,
        video_filter=VideoFilter(**conditions(arguments)),
        blocked_owner_ids=arguments.blocked,
        timeout_s=arguments.timeout_s,
    )
    for page in pages:
        if len(page.items) > left:
            del page.items[left:]
            # It goes on behind the items that were cut off.
            page.next_page_token = ""
        yield page
        left -= len(page.items)


def _feed_table(count: int) -> Table:
    # Wide enough for what later pages may bring.
    place, source = "#".rjust(len(str(count))), "SOURCE".ljust(len("personalised"))
    return Table(place, "VIDEO", source, "SCORE", "RELEASE", "ARM")


def _feed_row(place: int, item: FeedItem) -> tuple[int, str, str, float, str, str]:
    return place, item.video_id, source_name(item.source), item.score, item.release_id, item.arm


def explain(client: Client, arguments: argparse.Namespace) -> int:
    """What every stage did for a user's feed, and why videos are in it or absent."""
    answer = client.explain_feed(
        arguments.user,
        arguments.videos,
        page_size=arguments.page_size,
        video_filter=VideoFilter(**conditions(arguments)),
        blocked_owner_ids=arguments.blocked,
        timeout_s=arguments.timeout_s,
    )
    if arguments.json:
        print_json(answer)
    else:
        _print_explanation(answer)
    return 0


def _print_explanation(answer: ExplainFeedResponse) -> None:
    print(f"release  {printable(answer.release_id)}")
    print(f"history  {printable(' '.join(answer.history_video_ids)) or '(empty)'}\n")
    Table("SOURCE", "CANDIDATES", "MS", "ERROR").add(
        (source_name(s.source), s.candidate_count, s.elapsed.ToMicroseconds() / 1e3, s.error)
        for s in answer.sources
    )
    print()
    Table("FILTER", "KEPT", "REMOVED").add((f.name, f.kept_count, f.removed_count) for f in answer.filters)
    print()
    Table("SLOTS", "QUOTA", "SERVED").add(
        (source_name(share.source), share.quota_count, share.served_count) for share in answer.slot_shares
    )
    print()
    _feed_table(len(answer.items)).add(_feed_row(place, item) for place, item in enumerate(answer.items, 1))
    if answer.verdicts:
        print()
    Table("VIDEO", "SERVED", "STAGE", "DETAIL").add(
        (v.video_id, "yes" if v.served else "no", v.stage, v.detail) for v in answer.verdicts
    )
    note_degradations(answer.degradations)


def record(client: Client, arguments: argparse.Namespace) -> int:
    """One interaction, of the kind that the command is named after."""
    kind = InteractionKind.Value(f"INTERACTION_KIND_{arguments.command.upper()}")
    done = client.record_interaction(
        arguments.user,
        arguments.video,
        kind,
        event_id=arguments.event_id,
        region=arguments.region,
        watched_s=arguments.watched_s,
        wait_for_feed=arguments.wait_for_feed,
        timeout_s=arguments.timeout_s,
    )
    if arguments.json:
        print_json({"event_id": done.event_id, "created": done.created, "in_feed": done.in_feed})
    else:
        what = "recorded" if done.created else "had been recorded before"
        in_feed = ", in the next feed" if done.in_feed else ""
        print(f"{arguments.command} of {printable(arguments.video)} {what}{in_feed} ({done.event_id})")
    return 0


def trending(client: Client, arguments: argparse.Namespace) -> int:
    """What many users like at the moment, strongest first; with `--watch` again at each change."""
    if arguments.watch:
        return _watch_trending(client, arguments)
    everything = client.iter_trending(
        page_size=min(arguments.count, CHUNK),
        rising=arguments.rising,
        tag=arguments.tag,
        region=arguments.region,
        timeout_s=arguments.timeout_s,
    )
    videos = itertools.islice(everything, arguments.count)
    if arguments.json:
        for video in videos:
            print_json(video)
    else:
        _print_trending(videos)
    return 0


def _watch_trending(client: Client, arguments: argparse.Namespace) -> int:
    lists = client.watch_trending(
        page_size=arguments.count,
        rising=arguments.rising,
        tag=arguments.tag,
        region=arguments.region,
        timeout_s=arguments.timeout_s or WATCH_S,
    )
    for number, now in enumerate(lists):
        if arguments.json:
            print_json(now)
            continue
        if number:
            print()
        if not now.videos:
            print("(empty)", flush=True)
        _print_trending(now.videos)
    return 0


def _print_trending(videos: Iterable[TrendingVideo]) -> None:
    Table("#", "VIDEO", "SCORE").add((place, v.video_id, v.score) for place, v in enumerate(videos, 1))
