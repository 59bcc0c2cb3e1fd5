"""The conditions of a search, compared with what they say."""

import numpy as np
import pytest

from keek_server.releases.columns import video_columns
from keek_server.releases.release import VIDEO_COLUMNS
from keek_server.retrieval.fresh import Columns
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import MAX_TAGS
from keek_server.videos.filters import VideoFilter

OWNERS = ["ann", "", "bob", "ann"]
TAGS = [["cats", "funny"], [], ["dogs"], ["funny", "dogs"]]
DURATIONS_S = [5.0, 0.0, 60.0, 600.0]
CREATED_US = [10, 20, 30, 40]
LANGUAGES = ["pt-BR", "", "PT", "zh-Hant-TW"]
REGIONS = ["BR", "", "pt", "Straße 7"]


@pytest.fixture
def columns() -> Columns:
    return video_columns(
        np.zeros((len(OWNERS), DIMENSION), np.float32),
        owner_ids=OWNERS,
        tags=TAGS,
        durations_s=DURATIONS_S,
        create_times_us=CREATED_US,
        languages=LANGUAGES,
        regions=REGIONS,
    )


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
        (VideoFilter(languages=["pt"]), [0, 2]),
        (VideoFilter(languages=["Pt"]), [0, 2]),
        (VideoFilter(languages=["pt-br"]), [0]),
        (VideoFilter(languages=["pt-PT"]), []),
        (VideoFilter(languages=["zh"]), [3]),
        (VideoFilter(languages=["zh-hant-tw"]), [3]),
        # Of the subtags in between nothing is known.
        (VideoFilter(languages=["zh-Hant"]), []),
        (VideoFilter(languages=["Hant"]), []),
        (VideoFilter(languages=["p"]), []),
        (VideoFilter(languages=["de", "pt-BR", "zh"]), [0, 3]),
        (VideoFilter(regions=["br"]), [0]),
        (VideoFilter(regions=["PT", "BR"]), [0, 2]),
        (VideoFilter(regions=["straße 7"]), [3]),
        (VideoFilter(regions=["KZ"]), []),
        (VideoFilter(languages=["pt"], regions=["PT"]), [2]),
        (VideoFilter(languages=["pt"], tags=["funny"]), [0]),
    ],
)
def test_a_filter_lets_through_what_it_says(
    columns: Columns, filter_: VideoFilter, expected: list[int]
) -> None:
    assert np.flatnonzero(filter_.mask(columns)).tolist() == expected
    assert filter_.is_set == (filter_ != VideoFilter())


def test_a_filter_of_no_videos_lets_none_through() -> None:
    none = {name: np.empty((0, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()}
    filter_ = VideoFilter(owner_id="ann", tags=["cats"], max_duration_s=3, languages=["pt"], regions=["BR"])
    assert filter_.mask(none).shape == (0,)


@pytest.mark.parametrize("wanted", [1, 2, 32])
def test_tags_are_found_in_every_place_and_every_row_is_judged_by_itself(wanted: int) -> None:
    """More rows than are looked at together, compared with sets."""
    rng = np.random.default_rng(1)
    counts = rng.integers(0, MAX_TAGS + 1, 10_001).tolist()
    tags = [[f"t{tag}" for tag in rng.integers(0, 200, count).tolist()] for count in counts]
    count = len(tags)
    columns = video_columns(
        np.zeros((count, DIMENSION), np.float32),
        owner_ids=[""] * count,
        tags=tags,
        durations_s=[0.0] * count,
        create_times_us=[0] * count,
        languages=[""] * count,
        regions=[""] * count,
    )
    filter_ = VideoFilter(tags=[f"t{tag}" for tag in range(wanted)])
    expected = np.array([not set(filter_.tags).isdisjoint(own) for own in tags])
    np.testing.assert_array_equal(filter_.mask(columns), expected)
    rows = rng.permutation(count)[:5000]
    some = {name: column[rows] for name, column in columns.items()}
    np.testing.assert_array_equal(filter_.mask(some), expected[rows])


def test_the_columns_are_those_that_a_release_keeps(columns: Columns) -> None:
    assert {name: (array.dtype, array.shape[1:]) for name, array in columns.items()} == {
        name: (np.dtype(column.dtype), column.shape) for name, column in VIDEO_COLUMNS.items()
    }
