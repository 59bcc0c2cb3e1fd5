"""The blocking client."""

from keek.blocking.experiments import ExperimentCalls
from keek.blocking.feeds import FeedCalls
from keek.blocking.interactions import InteractionCalls
from keek.blocking.releases import ReleaseCalls
from keek.blocking.search import SearchCalls
from keek.blocking.trending import TrendingCalls
from keek.blocking.uploads import UploadCalls
from keek.blocking.videos import VideoCalls


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
    """A blocking client of one Keek deployment; threads may share it.

        with keek.Client("keek:50051") as client:
            page = client.list_feed("u1", page_size=10)
            client.like("u1", page.items[0].video_id)

    It opens at its first call or `with`. Every call takes `timeout_s`, its deadline with all
    retries; `keek.Timeouts` has the defaults. Every call raises `keek.CallError`, as drawn in
    `keek.errors`, and `keek.ClientStateError` when the client is closed. Where 0 or an empty
    string is the default of a parameter, the server chooses.
    """
