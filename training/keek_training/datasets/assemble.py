"""Checked columns to a Dataset: one place that knows what every reader promises."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from keek_training.datasets.dataset import (
    INTERACTION_EXTRAS,
    INTERACTION_SCHEMA,
    VIDEO_SCHEMA,
    Dataset,
    Problem,
)
from keek_training.datasets.rows import Rows


def video_table(
    rows: Rows,
    *,
    video_ids: pa.Array,
    owner_ids: pa.Array | None = None,
    tags: list[list[str]] | None = None,
    durations_s: npt.NDArray[np.float32] | None = None,
    titles: pa.Array | None = None,
    create_times_us: pa.Array | None = None,
    languages: pa.Array | None = None,
    regions: pa.Array | None = None,
) -> pa.Table:
    """The good rows as videos; of several with one id the first is kept, the others are rejected.

    Columns that are not given are unknown: empty, 0, or a null time, which `assemble` fills.
    """
    _reject_repeats(rows, video_ids)
    empty = pa.array([""] * rows.count, pa.string())
    table = pa.table(
        {
            "video_id": video_ids,
            "owner_id": empty if owner_ids is None else owner_ids,
            "tags": pa.array([[]] * rows.count if tags is None else tags, pa.list_(pa.string())),
            "duration_s": np.zeros(rows.count, np.float32) if durations_s is None else durations_s,
            "title": empty if titles is None else titles,
            "create_time_us": pa.nulls(rows.count, pa.int64())
            if create_times_us is None
            else create_times_us,
            "language": empty if languages is None else languages,
            "region": empty if regions is None else regions,
        }
    )
    return table.filter(pa.array(rows.good))


def bare_videos(video_ids: pa.Array) -> pa.Table:
    """Videos of which nothing but the id is known, one for each different id."""
    ids = pc.unique(video_ids)
    count = len(ids)
    empty = pa.array([""] * count, pa.string())
    return pa.table(
        {
            "video_id": ids,
            "owner_id": empty,
            "tags": pa.array([[]] * count, pa.list_(pa.string())),
            "duration_s": np.zeros(count, np.float32),
            "title": empty,
            "create_time_us": pa.nulls(count, pa.int64()),
            "language": empty,
            "region": empty,
        }
    )


def with_unknown(videos: pa.Table, interactions: pa.Table) -> pa.Table:
    """`videos`, and a bare one for every other video that an interaction names."""
    named = pc.unique(interactions["video_id"])
    unknown = named.filter(pc.invert(pc.is_in(named, value_set=videos["video_id"].combine_chunks())))
    return pa.concat_tables([videos, bare_videos(unknown)])


def reject_unknown(rows: Rows, video_ids: pa.Array, videos: pa.Table) -> None:
    """Rejects interactions with videos that are not there."""
    known = pc.is_in(video_ids, value_set=videos["video_id"].combine_chunks())
    rejected = ~known.to_numpy(zero_copy_only=False)
    rows.reject(rejected, lambda row: f"the video {video_ids[row].as_py()!r} is not among the videos")


def interaction_table(
    user_ids: pa.Array,
    video_ids: pa.Array,
    kinds: npt.NDArray[np.int8],
    event_times_us: pa.Array,
    **extras: pa.Array,
) -> pa.Table:
    """Interactions in the order given, which `assemble` keeps among those of the same time.

    `extras` are columns of INTERACTION_EXTRAS.
    """
    return pa.table(
        {
            "user_id": user_ids,
            "video_id": video_ids,
            "kind": pa.array(kinds, pa.int8()),
            "event_time_us": pa.array(event_times_us, pa.int64()),
            **extras,
        }
    )


def assemble(
    name: str, videos: pa.Table, interactions: pa.Table, problems: Sequence[Problem] = ()
) -> Dataset:
    """Sorts the videos by id and the interactions by time, and fills in when videos were created.

    A video without a time of its own was created when it was first interacted with, or
    when the data begins if it never was; in data without interactions, at 0.
    """
    interactions = interactions.take(_time_order(interactions))
    videos = _fill_create_times(videos, interactions).sort_by("video_id")
    extras = [field for field in INTERACTION_EXTRAS if field.name in interactions.column_names]
    schema = pa.schema([*INTERACTION_SCHEMA, *extras])
    return Dataset(
        name=name,
        videos=videos.select(VIDEO_SCHEMA.names).cast(VIDEO_SCHEMA).combine_chunks(),
        interactions=interactions.select(schema.names).cast(schema).combine_chunks(),
        problems=list(problems),
    )


def _time_order(interactions: pa.Table) -> pa.Array:
    return pa.array(np.argsort(interactions["event_time_us"].to_numpy(), kind="stable"))


def _fill_create_times(videos: pa.Table, interactions: pa.Table) -> pa.Table:
    # The interactions are in the order of time: an id's first place is its earliest.
    ids = interactions["video_id"].combine_chunks().dictionary_encode()
    codes, first = np.unique(ids.indices.to_numpy(), return_index=True)
    times_us = interactions["event_time_us"].to_numpy()
    earliest = pa.array(times_us[first][np.argsort(codes)], pa.int64())
    place = pc.index_in(videos["video_id"], value_set=ids.dictionary)
    start_us = int(times_us[0]) if len(times_us) else 0
    guess = pc.fill_null(earliest.take(place.combine_chunks()), start_us)
    filled = pc.coalesce(videos["create_time_us"], guess)
    return videos.set_column(videos.column_names.index("create_time_us"), "create_time_us", filled)


def _reject_repeats(rows: Rows, video_ids: pa.Array) -> None:
    """Rejects all good rows of one id but the first."""
    places = np.flatnonzero(rows.good)
    codes = video_ids.take(pa.array(places)).dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.zeros(rows.count, np.bool_)
    repeated[np.delete(places, first)] = True
    lines = {}
    if repeated.any():
        lines = {video_ids[row].as_py(): rows.line(row) for row in places[first].tolist()}
    rows.reject(
        repeated,
        lambda row: (
            f"the video {video_ids[row].as_py()!r} stands on line {lines[video_ids[row].as_py()]} already"
        ),
    )
