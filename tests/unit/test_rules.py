"""The field rules of the contract, enforced."""

import time
import uuid
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from keek.v1 import feed_service_pb2 as feed
from keek.v1 import interaction_service_pb2 as interaction
from keek.v1 import video_service_pb2 as video
from keek.v1.search_service_pb2 import SearchVideosRequest
from keek.v1.video_filter_pb2 import VideoFilter
from keek_server.errors import InvalidArgumentError
from keek_server.rpc.rules import RuleChecker


def violations(message: Message) -> dict[str, str]:
    try:
        RuleChecker().check(message)
    except InvalidArgumentError as error:
        return {v.field: v.description for v in error.violations}
    return {}


def an_interaction(**changes: Any) -> interaction.Interaction:
    fields = {"event_id": str(uuid.uuid4()), "user_id": "u1", "video_id": "v1", "kind": 2}
    return interaction.Interaction(**(fields | changes))


def test_good_requests_pass() -> None:
    assert violations(feed.ListFeedRequest(user_id="u1")) == {}
    assert violations(interaction.RecordInteractionRequest(interaction=an_interaction())) == {}
    assert violations(video.ImportVideosRequest(videos=[video.Video(video_id="v", duration_s=3.5)])) == {}


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        (feed.ListFeedRequest(), "user_id", "required"),
        (feed.ListFeedRequest(user_id="u" * 129), "user_id", "at most 128"),
        (feed.ListFeedRequest(user_id="é" * 65), "user_id", "130 bytes"),
        (feed.ListFeedRequest(user_id="a\0b"), "user_id", "NUL"),
        (feed.ListFeedRequest(user_id="u", page_size=101), "page_size", "between 0 and 100"),
        (feed.ListFeedRequest(user_id="u", page_size=-1), "page_size", "between 0 and 100"),
        (feed.StreamFeedRequest(user_id="u", page_count=51), "page_count", "between"),
        (feed.ExplainFeedRequest(user_id="u", video_ids=["v", ""]), "video_ids[1]", "required"),
        (feed.ExplainFeedRequest(user_id="u", video_ids=["v"] * 101), "video_ids", "at most 100"),
        (interaction.RecordInteractionRequest(), "interaction", "required"),
        (
            interaction.RecordInteractionRequest(interaction=an_interaction(event_id="42")),
            "interaction.event_id",
            "not a UUID",
        ),
        (
            interaction.RecordInteractionRequest(interaction=an_interaction(kind=0)),
            "interaction.kind",
            "required",
        ),
        (
            interaction.RecordInteractionRequest(interaction=an_interaction(kind=99)),
            "interaction.kind",
            "99 is not a known value",
        ),
        (
            interaction.RecordInteractionsRequest(
                interactions=[an_interaction(), an_interaction(video_id="")]
            ),
            "interactions[1].video_id",
            "required",
        ),
        (
            video.ImportVideosRequest(videos=[video.Video(video_id="v", duration_s=float("nan"))]),
            "videos[0].duration_s",
            "is nan",
        ),
        (
            video.ImportVideosRequest(videos=[video.Video(video_id="v", duration_s=float("inf"))]),
            "videos[0].duration_s",
            "is inf",
        ),
        (
            video.ImportVideosRequest(videos=[video.Video(video_id="v", tags=["t"] * 33)]),
            "videos[0].tags",
            "at most 32",
        ),
        (
            video.ImportVideosRequest(videos=[video.Video(video_id="v", language="pt_BR")]),
            "videos[0].language",
            "not a BCP 47 language tag",
        ),
        (
            video.ImportVideosRequest(videos=[video.Video(video_id="v", language="x-" * 17 + "yz")]),
            "videos[0].language",
            "at most 35",
        ),
        (
            video.ImportVideosRequest(videos=[video.Video(video_id="v", region="r" * 17)]),
            "videos[0].region",
            "at most 16",
        ),
        (SearchVideosRequest(filter=VideoFilter(languages=["pt", ""])), "filter.languages[1]", "required"),
        (SearchVideosRequest(filter=VideoFilter(languages=["pt-"])), "filter.languages[0]", "BCP 47"),
        (SearchVideosRequest(filter=VideoFilter(languages=["de"] * 33)), "filter.languages", "at most 32"),
        (SearchVideosRequest(filter=VideoFilter(regions=[""])), "filter.regions[0]", "required"),
        (SearchVideosRequest(filter=VideoFilter(regions=["r"] * 33)), "filter.regions", "at most 32"),
    ],
)
def test_each_violation_names_its_field(message: Message, field: str, words: str) -> None:
    assert words in violations(message)[field]


@pytest.mark.parametrize("language", ["", "pt", "PT-br", "zh-Hant-TW", "de-1996", "x-klingon", "i-lux"])
def test_language_tags_pass(language: str) -> None:
    assert violations(video.ImportVideosRequest(videos=[video.Video(video_id="v", language=language)])) == {}


@pytest.mark.parametrize(
    "language", ["-", "pt-", "-pt", "pt--BR", "4pt", "português", "verylonggg", "pt BR", "pt\n"]
)
def test_what_is_no_language_tag_is_refused(language: str) -> None:
    message = video.ImportVideosRequest(videos=[video.Video(video_id="v", language=language)])
    assert violations(message).keys() == {"videos[0].language"}


def test_all_violations_are_named_at_once() -> None:
    message = interaction.RecordInteractionRequest(interaction=interaction.Interaction(event_id="x"))
    assert violations(message).keys() == {
        "interaction.event_id",
        "interaction.user_id",
        "interaction.video_id",
        "interaction.kind",
    }


@pytest.mark.parametrize(("ahead_s", "refused"), [(-10, False), (200, False), (400, True), (10**9, True)])
def test_times_in_the_far_future_are_refused(ahead_s: float, refused: bool) -> None:
    message = interaction.RecordInteractionRequest(interaction=an_interaction())
    message.interaction.event_time.seconds = int(time.time() + ahead_s)
    assert ("interaction.event_time" in violations(message)) is refused


@pytest.mark.parametrize("kind", ["VIEW", "SKIP"])
@pytest.mark.parametrize("watched", [Duration(), Duration(seconds=12, nanos=5), Duration(seconds=86_400)])
def test_a_view_and_a_skip_may_say_how_long_the_video_was_watched(kind: str, watched: Duration) -> None:
    one = an_interaction(kind=f"INTERACTION_KIND_{kind}", watched=watched)
    assert violations(interaction.RecordInteractionRequest(interaction=one)) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"watched": Duration(seconds=-1)}, "is -1, must be between 0 and 86400"),
        ({"watched": Duration(nanos=-1)}, "must be between 0 and 86400"),
        ({"watched": Duration(seconds=86_400, nanos=1)}, "must be between 0 and 86400"),
        ({"watched": Duration(seconds=1, nanos=-1)}, "is not a duration"),
        ({"watched": Duration(nanos=1_000_000_000)}, "is not a duration"),
        (
            {"watched": Duration(seconds=1), "kind": "INTERACTION_KIND_LIKE"},
            "goes with INTERACTION_KIND_VIEW and INTERACTION_KIND_SKIP alone",
        ),
        ({"watched": Duration(), "kind": 99}, "goes with"),
    ],
)
def test_other_watched_times_are_refused_with_their_place(changes: dict[str, Any], words: str) -> None:
    bad = an_interaction(**{"kind": "INTERACTION_KIND_VIEW"} | changes)
    message = interaction.RecordInteractionsRequest(interactions=[an_interaction(), bad])
    assert words in violations(message)["interactions[1].watched"]


def test_times_that_are_no_times_are_refused() -> None:
    message = interaction.RecordInteractionRequest(interaction=an_interaction())
    message.interaction.event_time.nanos = -5
    assert "interaction.event_time" in violations(message)
