"""The calls of the feed's benchmark: one at a time, as many as are answered, with interactions, streams."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.feed_users import asking_users, new_interactions
from benchmarks.ghz import Load, Outcome, ghz_program, run_ghz, write_messages
from keek_server.errors import SetupError

PAGE_SIZE: Final = 10
STREAM_PAGES: Final = 5
FEEDS_PER_INTERACTION: Final = 10
_CALLERS, _CONNECTIONS = 16, 4
_DRAWS = 50_000
"""Requests in a file, which are taken in turn."""
_WARM_UP = 100
_CURL_LIMIT_S = 240.0


@dataclass(frozen=True, slots=True)
class Calls:
    """Makes them; every kind has a file of requests."""

    program: Path
    feeds: Path
    streams: Path
    interactions: Path

    @classmethod
    def prepare(cls, folder: Path, video_ids: list[str]) -> "Calls":
        """Draws the requests.

        Args:
            folder: Gets the files.
            video_ids: What is interacted with.

        Raises:
            SetupError: When ghz is missing, and cannot be built.
        """
        users = asking_users(_DRAWS, seed=21)
        feeds: list[dict[str, Any]] = [{"user_id": user, "page_size": PAGE_SIZE} for user in users]
        streams = [{**feed, "page_count": STREAM_PAGES} for feed in feeds]
        interactions = new_interactions(video_ids, _DRAWS // FEEDS_PER_INTERACTION, seed=22)
        return cls(
            ghz_program(),
            write_messages(folder / "feeds.json", feeds),
            write_messages(folder / "streams.json", streams),
            write_messages(folder / "interactions.json", interactions),
        )

    async def one_at_a_time(self, address: str, count: int) -> Outcome:
        """ListFeed by one caller."""
        return await run_ghz(self.program, address, self._list_feed(count, concurrency=1, connections=1))

    async def many(self, address: str, count: int) -> Outcome:
        """ListFeed by 16 callers, who each wait for their answer, on 4 connections."""
        load = self._list_feed(count, concurrency=_CALLERS, connections=_CONNECTIONS)
        return await run_ghz(self.program, address, load)

    async def many_with_interactions(
        self, address: str, count: int, expected_rps: float
    ) -> tuple[Outcome, Outcome]:
        """The same, while an interaction is recorded for every ten feeds.

        Args:
            address: Of the server.
            count: Feeds.
            expected_rps: How many feeds a second are expected, which sets the rate of the interactions.

        Returns:
            The feeds, and the interactions.
        """
        recorded = Load(
            call="keek.v1.InteractionService/RecordInteraction",
            proto="keek/v1/interaction_service.proto",
            messages=self.interactions,
            total=max(1, count // FEEDS_PER_INTERACTION),
            concurrency=_CONNECTIONS,
            connections=_CONNECTIONS,
            rps=max(1, round(expected_rps / FEEDS_PER_INTERACTION)),
        )
        return await asyncio.gather(self.many(address, count), run_ghz(self.program, address, recorded))

    async def stream(self, address: str, count: int) -> Outcome:
        """StreamFeed of five pages, by as many callers; a latency is that of a whole stream."""
        load = Load(
            call="keek.v1.FeedService/StreamFeed",
            proto="keek/v1/feed_service.proto",
            messages=self.streams,
            total=count,
            concurrency=_CALLERS,
            connections=_CONNECTIONS,
        )
        return await run_ghz(self.program, address, load)

    def _list_feed(self, count: int, *, concurrency: int, connections: int) -> Load:
        return Load(
            call="keek.v1.FeedService/ListFeed",
            proto="keek/v1/feed_service.proto",
            messages=self.feeds,
            total=count,
            concurrency=concurrency,
            connections=connections,
            skip_first=_WARM_UP,
        )


async def prototype_times_ms(address: str, folder: Path, count: int) -> list[float]:
    """Times of feeds over HTTP, one after the other on one connection, made by curl.

    Raises:
        SetupError: When curl is missing, fails, or takes longer than four minutes.
    """
    urls = folder / "prototype.curl"
    lines = [
        f'url = "http://{address}/feed/{user}?count={PAGE_SIZE}"\noutput = "/dev/null"'
        for user in asking_users(count, seed=23)
    ]
    urls.write_text("\n".join(lines) + "\n", "utf-8")
    command = ("curl", "--silent", "--show-error", "--fail", "--config", str(urls))
    try:
        process = await asyncio.create_subprocess_exec(
            *command, "--write-out", "%{time_total}\\n", stdout=asyncio.subprocess.PIPE
        )
    except FileNotFoundError:
        raise SetupError("curl is missing: it calls the prototype") from None
    try:
        async with asyncio.timeout(_CURL_LIMIT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise SetupError(f"the prototype takes longer than {_CURL_LIMIT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise SetupError(f"curl ended with code {process.returncode}: see above")
    return [float(line) * 1000 for line in output.split()]
