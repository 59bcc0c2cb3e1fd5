"""Commands that find videos by what they show or who likes them, and people by what they like."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from keek.cli.arguments import conditions
from keek.cli.output import Cell, Table, note, print_json
from keek.client import Client
from keek.connection import PageResponse
from keek.queries import SearchOptions
from keek.v1.search_service_pb2 import (
    FindAudienceResponse,
    FoundVideo,
    ListSimilarVideosResponse,
    SearchVideosResponse,
)

MAX_PAGE_SIZE: Final = 100
"""Found videos on one page, as the contract has it."""

MAX_AUDIENCE_PAGE_SIZE: Final = 1000

UNTRAINED: Final = "the CLIP of this release is untrained: its results mean nothing"

Page = TypeVar("Page", bound=PageResponse)


def search(client: Client, arguments: argparse.Namespace) -> int:
    """Videos that look like a text, an image or another video."""
    image = arguments.image.read_bytes() if arguments.image else b""

    def ask(page_size: int, token: str) -> SearchVideosResponse:
        page = client.search_videos(
            arguments.text or "",
            image=image,
            video_id=arguments.like or "",
            **_options(arguments, page_size, token),
        )
        if page.clip_untrained and not token:
            note(UNTRAINED)
        return page

    table = _Numbered(arguments, "VIDEO", "SCORE")
    for page in _pages(ask, arguments.count, MAX_PAGE_SIZE):
        table.add(page, map(_found, page.videos))
    return 0


def similar(client: Client, arguments: argparse.Namespace) -> int:
    """Videos that the same people like."""

    def ask(page_size: int, token: str) -> ListSimilarVideosResponse:
        return client.list_similar_videos(arguments.video, **_options(arguments, page_size, token))

    table = _Numbered(arguments, "VIDEO", "SCORE")
    for page in _pages(ask, arguments.count, MAX_PAGE_SIZE):
        table.add(page, map(_found, page.videos))
    return 0


def audience(client: Client, arguments: argparse.Namespace) -> int:
    """The users who like a video best."""

    def ask(page_size: int, token: str) -> FindAudienceResponse:
        return client.find_audience(
            arguments.video, page_size=page_size, page_token=token, timeout_s=arguments.timeout_s
        )

    table = _Numbered(arguments, "USER", "SCORE")
    for page in _pages(ask, arguments.count, MAX_AUDIENCE_PAGE_SIZE):
        table.add(page, ((member.user_id, member.score) for member in page.members))
    return 0


def _options(arguments: argparse.Namespace, page_size: int, token: str) -> SearchOptions:
    return SearchOptions(
        **conditions(arguments), page_size=page_size, page_token=token, timeout_s=arguments.timeout_s
    )


def _pages(ask: Callable[[int, str], Page], count: int, most: int) -> Iterator[Page]:
    """Pages of at most `most` until `count` items are asked for, or there are no more."""
    token = ""
    for start in range(0, count, most):
        page = ask(min(most, count - start), token)
        yield page
        token = page.next_page_token
        if not token:
            return


def _found(video: FoundVideo) -> tuple[str, float]:
    return video.video_id, video.score


class _Numbered:
    """A table whose rows are numbered over all pages; or the pages as JSON."""

    def __init__(self, arguments: argparse.Namespace, *headers: str) -> None:
        self._table: Final = Table("#".rjust(len(str(arguments.count))), *headers)
        self._as_json: Final[bool] = arguments.json
        self._count = 0

    def add(
        self,
        page: SearchVideosResponse | ListSimilarVideosResponse | FindAudienceResponse,
        rows: Iterable[tuple[Cell, ...]],
    ) -> None:
        """Prints a page."""
        if self._as_json:
            print_json(page)
            return
        numbered = [(place, *row) for place, row in enumerate(rows, self._count + 1)]
        self._table.add(numbered)
        self._count += len(numbered)
