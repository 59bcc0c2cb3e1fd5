"""The conditions of a search, compared with what they say."""

import numpy as np
import pytest

from keek_server.retrieval.fresh import Columns
from keek_server.retrieval.ids import hash_all
from keek_server.search.filters import VideoFilter
from keek_server.towers.features import pad_tags

OWNERS = ["ann", "", "bob", "ann"]
TAGS = [["cats", "funny"], [], ["dogs"], ["funny", "dogs"]]
DURATIONS_S = [5.0, 0.0, 60.0, 600.0]
CREATED_US = [10, 20, 30, 40]


@pytest.fixture
def columns() -> Columns:
    return {
        "owners": hash_all(OWNERS),
        "tags": pad_tags(TAGS),
        "durations_s": np.array(DURATIONS_S, np.float32),
        "create_times_us": np.array(CREATED_US, np.int64),
    }


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        (VideoFilter(), [0, 1, 2, 3]),
        (VideoFilter(owner_id="ann"), [0, 3]),
        (VideoFilter(owner_id="nobody"), []),
        (VideoFilter(tags=["funny"]), [0, 3]),
        (VideoFilter(tags=["cats", "dogs"]), [0, 2, 3]),
        (VideoFilter(tags=["unheard of"]), []),
        (VideoFilter(min_duration_s=60), [2, 3]),
        (VideoFilter(max_duration_s=60), [0, 2]),
        (VideoFilter(min_duration_s=6, max_duration_s=599), [2]),
        (VideoFilter(created_after_us=30), [2, 3]),
        (VideoFilter(owner_id="ann", tags=["dogs"], created_after_us=11), [3]),
    ],
)
def test_a_filter_lets_through_what_it_says(
    columns: Columns, filter_: VideoFilter, expected: list[int]
) -> None:
    assert np.flatnonzero(filter_.mask(columns)).tolist() == expected
    assert filter_.is_set == (filter_ != VideoFilter())


def test_a_filter_of_no_videos_lets_none_through() -> None:
    none: Columns = {
        "owners": np.empty(0, np.uint64),
        "tags": np.empty((0, 16), np.int32),
        "durations_s": np.empty(0, np.float32),
        "create_times_us": np.empty(0, np.int64),
    }
    assert VideoFilter(owner_id="ann", tags=["cats"], max_duration_s=3).mask(none).shape == (0,)
