"""Requests of the SearchService and changes of videos, made alike for both clients."""

import uuid
from collections.abc import Iterable
from typing import TypedDict, cast

from google.protobuf.field_mask_pb2 import FieldMask

from keek.uploads import identified
from keek.v1.search_service_pb2 import ListSimilarVideosRequest, SearchVideosRequest
from keek.v1.video_filter_pb2 import VideoFilter
from keek.v1.video_service_pb2 import CreateVideoRequest, DeleteVideoRequest, UpdateVideoRequest, Video


class Conditions(TypedDict, total=False):
    """What a video must meet, all of those that are given."""

    tags: Iterable[str]
    """At least one of these."""
    owner_id: str
    min_duration_s: float
    """0 sets no bound, as in the next two. A video of unknown duration meets neither."""
    max_duration_s: float
    max_age_s: float
    """Since the video was created."""
    languages: Iterable[str]
    """One of these: `pt` is met by `pt-BR`, too. A video of unknown language meets none."""
    regions: Iterable[str]
    """One of these."""


class SearchOptions(Conditions, total=False):
    """Conditions that every found video meets, and which page is wanted."""

    page_size: int
    """0 means 20; at most 100."""
    page_token: str
    timeout_s: float | None


def search_request(text: str, image: bytes, video_id: str, options: SearchOptions) -> SearchVideosRequest:
    """
    Raises:
        ValueError: Not exactly one of the three queries is given.
    """
    if sum(map(bool, (text, image, video_id))) != 1:
        raise ValueError("give one of text, image and video_id, and not an empty one")
    request = SearchVideosRequest(
        filter=_filter(options),
        page_size=options.get("page_size", 0),
        page_token=options.get("page_token", ""),
    )
    if text:
        request.text = text
    elif image:
        request.image = image
    else:
        request.video_id = video_id
    return request


def similar_request(video_id: str, options: SearchOptions) -> ListSimilarVideosRequest:
    """Videos that the same people like."""
    return ListSimilarVideosRequest(
        video_id=video_id,
        filter=_filter(options),
        page_size=options.get("page_size", 0),
        page_token=options.get("page_token", ""),
    )


def _filter(options: SearchOptions) -> VideoFilter | None:
    # Type checkers say so before; a misspelt condition must not be none at run time.
    if unknown := options.keys() - SearchOptions.__annotations__.keys():
        raise TypeError(f"{sorted(unknown)[0]!r} is no option of a search")
    conditions = {name: value for name, value in options.items() if name in Conditions.__annotations__}
    message = VideoFilter(**cast("Conditions", conditions))
    return message if message.ByteSize() else None


def create_request(video: Video, source_url: str, request_id: str | None) -> CreateVideoRequest:
    """With a `video_id` and a `request_id`, made unless they are given."""
    return CreateVideoRequest(
        video=identified(video), source_url=source_url, request_id=request_id or str(uuid.uuid4())
    )


def update_request(video: Video, fields: Iterable[str], request_id: str | None) -> UpdateVideoRequest:
    """With a `request_id`, made unless it is given."""
    paths = list(fields)
    return UpdateVideoRequest(
        video=video,
        update_mask=FieldMask(paths=paths) if paths else None,
        request_id=request_id or str(uuid.uuid4()),
    )


def delete_request(video_id: str, request_id: str | None) -> DeleteVideoRequest:
    """With a `request_id`, made unless it is given."""
    return DeleteVideoRequest(video_id=video_id, request_id=request_id or str(uuid.uuid4()))
