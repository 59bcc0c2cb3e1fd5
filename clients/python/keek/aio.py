"""The asyncio client: `keek.Client` with `await`."""

from keek.asynchronous.experiments import ExperimentCalls
from keek.asynchronous.feeds import FeedCalls
from keek.asynchronous.interactions import InteractionCalls
from keek.asynchronous.releases import ReleaseCalls
from keek.asynchronous.search import SearchCalls
from keek.asynchronous.trending import TrendingCalls
from keek.asynchronous.uploads import UploadCalls
from keek.asynchronous.videos import VideoCalls


class Client(
    FeedCalls,
    InteractionCalls,
    VideoCalls,
    UploadCalls,
    SearchCalls,
    TrendingCalls,
    ReleaseCalls,
    ExperimentCalls,
):
    """An asyncio client of one Keek deployment, for one event loop.

        async with keek.aio.Client("keek:50051") as client:
            page = await client.list_feed("u1", page_size=10)
            await client.like("u1", page.items[0].video_id)

    Everything is as in `keek.Client`. Cancelling a task cancels its call.
    """
