"""Training windows: what is trained, once, and on what a request at that moment would send."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from keek_server.feed.history import history_inputs
from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.kinds import InteractionKind
from keek_server.releases.release import Corpus
from keek_server.retrieval.fresh import VECTORS
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import video_features
from keek_server.towers.users import user_batch
from keek_training.config import TrainConfig
from keek_training.datasets.dataset import INTERACTION_SCHEMA, VIDEO_SCHEMA, Dataset
from keek_training.datasets.synth import SynthConfig, synthesise
from keek_training.features import Catalogue, Sequences, catalogue_of, sequences_of
from keek_training.validation import serving_inputs
from keek_training.windows import Windows, fill, split

_END_US = 1_750_000_000_000_000
_WEIGHTS = TrainConfig().kind_weights
_LENGTH = 20

View, Like, Save, Skip = (InteractionKind[name] for name in ("VIEW", "LIKE", "SAVE", "SKIP"))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthesise(SynthConfig(users=60, videos=300, interactions=3000, end_us=_END_US))


@pytest.fixture(scope="module")
def catalogue(dataset: Dataset) -> Catalogue:
    return catalogue_of(dataset)


@pytest.fixture(scope="module")
def sequences(dataset: Dataset, catalogue: Catalogue) -> Sequences:
    return sequences_of(dataset, catalogue, _WEIGHTS)


def _small(events: Sequence[tuple[str, str, InteractionKind]], videos: Sequence[str]) -> Dataset:
    """Events (user, video, kind), a second after one another, each user's in this order."""
    count = len(videos)
    columns = [videos, [""] * count, [[]] * count, [0.0] * count, [""] * count, [0] * count]
    columns += [[""] * count, [""] * count]
    rows = [(user, video, int(kind), i * 1_000_000) for i, (user, video, kind) in enumerate(events)]
    return Dataset(
        "small",
        pa.table([pa.array(c, f.type) for c, f in zip(columns, VIDEO_SCHEMA, strict=True)], VIDEO_SCHEMA),
        pa.table(
            [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), INTERACTION_SCHEMA, strict=True)],
            INTERACTION_SCHEMA,
        ),
    )


def _small_sequences(events: Sequence[tuple[str, str, InteractionKind]]) -> Sequences:
    dataset = _small(events, ["a", "b", "c"])
    return sequences_of(dataset, catalogue_of(dataset), _WEIGHTS)


def _requests(sequences: Sequences, ends: np.ndarray) -> Windows:
    users = np.searchsorted(sequences.offsets, ends, side="right") - 1
    return Windows(users, sequences.offsets[users], ends, ends - 1)


def _log_before(dataset: Dataset, user_id: str, target_time_us: int, target: int) -> list[HistoryEntry]:
    """The user's interactions before the target, straight from the data set's rows."""
    entries = [
        HistoryEntry(row["video_id"], InteractionKind(row["kind"]), row["event_time_us"])
        for row in dataset.interactions.to_pylist()
        if row["user_id"] == user_id
    ]
    assert entries[target].event_time_us == target_time_us
    return entries[:target]


def test_a_training_window_is_what_serving_sends_at_that_moment(
    dataset: Dataset, catalogue: Catalogue, sequences: Sequences
) -> None:
    rng = np.random.default_rng(3)
    ids = catalogue.video_ids.to_pylist()
    vectors = rng.normal(size=(len(ids), DIMENSION)).astype(np.float32)
    corpus = Corpus.build(ids, {VECTORS: vectors}, np.zeros(len(ids), np.int64))
    ends = np.concatenate([rng.integers(0, len(sequences), 40), sequences.offsets[:3]])
    requests = _requests(sequences, ends)

    served = []
    for user, end in zip(requests.users, ends, strict=True):
        now_us = int(sequences.times_us[end])
        history = _log_before(dataset, sequences.user_ids[user], now_us, end - sequences.offsets[user])
        served.append(history_inputs(corpus, sequences.user_ids[user], history[-_LENGTH:], now_us))
    lengths = [len(user.kinds) for user in served]
    assert 0 in lengths
    assert _LENGTH in lengths

    trained = serving_inputs(sequences, requests, vectors, _LENGTH)
    expected = user_batch(served)
    assert trained.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(trained[name], values, err_msg=name)
        assert trained[name].dtype == values.dtype


def test_a_position_within_a_window_sees_what_a_window_ending_there_sees(sequences: Sequences) -> None:
    windows = split(sequences, _LENGTH, 0, np.random.default_rng(0)).training
    filled = fill(sequences, windows, _LENGTH)
    for row, position in np.argwhere(filled.weights > 0)[::17]:
        after = windows.ends[row] - (_LENGTH - 1 - position)
        alone = fill(sequences, _requests(sequences, np.array([after])), _LENGTH)
        # What the window cannot see is older than half a window at least.
        seen = position + 1
        np.testing.assert_array_equal(filled.kinds[row, :seen], alone.kinds[0, -seen:])
        np.testing.assert_array_equal(filled.videos[row, :seen], alone.videos[0, -seen:])
        moved = filled.ages_s[row, :seen] - (filled.ages_s[row, seen] if seen < _LENGTH else 0)
        np.testing.assert_allclose(moved * (alone.kinds[0, -seen:] > 0), alone.ages_s[0, -seen:], atol=1.0)
        assert filled.targets[row, position] == sequences.videos[after]


def test_a_videos_features_do_not_depend_on_the_videos_beside_it(
    dataset: Dataset, catalogue: Catalogue
) -> None:
    for row in (0, 7, 299):
        video = dataset.videos.slice(row, 1).to_pylist()[0]
        alone = video_features(
            [video["video_id"]], [video["owner_id"]], [video["tags"]], [video["duration_s"]]
        )
        for name, values in alone.items():
            found = catalogue.features[name][row]
            np.testing.assert_array_equal(found[: values.shape[1]], values[0], err_msg=name)
            assert not found[values.shape[1] :].any()


def test_every_target_is_trained_exactly_once_with_half_a_window_of_history(sequences: Sequences) -> None:
    windows = split(sequences, _LENGTH, 0, np.random.default_rng(0)).training
    filled = fill(sequences, windows, _LENGTH)
    rows = windows.ends[:, None] - np.arange(_LENGTH - 1, -1, -1)
    trained = rows[filled.weights > 0]
    assert sorted(trained) == np.flatnonzero(sequences.weights).tolist()
    context = np.cumsum(filled.kinds > 0, axis=1)[filled.weights > 0]
    users = np.searchsorted(sequences.offsets, trained, side="right") - 1
    whole = trained - sequences.offsets[users]
    assert (context >= np.minimum(whole, _LENGTH // 2)).all()


def test_nothing_from_a_held_out_target_on_is_trained(sequences: Sequences) -> None:
    parts = split(sequences, _LENGTH, 25, np.random.default_rng(0))
    assert len(parts.validation) == 25
    assert (sequences.weights[parts.validation.ends] > 0).all()
    held = dict(zip(parts.validation.users, parts.validation.ends, strict=True))
    last = [parts.training.ends[parts.training.users == user].max(initial=-1) for user in held]
    assert all(end < held_end for end, held_end in zip(last, held.values(), strict=True))
    others = np.setdiff1d(np.arange(len(sequences.user_ids)), list(held))
    assert set(parts.training.users) >= {
        user for user in others if sequences.weights[slice(*sequences.offsets[user : user + 2])].any()
    }


def test_a_skip_is_history_but_never_a_target() -> None:
    sequences = _small_sequences([("u", "a", View), ("u", "b", Skip), ("u", "c", View)])
    assert sequences.kinds.tolist() == [View, Skip, View]
    assert sequences.weights.tolist() == [1, 0, 1]


def test_a_video_is_a_target_once_and_weighs_as_the_strongest_that_was_done_with_it() -> None:
    sequences = _small_sequences(
        [("u", "a", View), ("u", "a", Like), ("u", "b", Skip), ("u", "b", Save), ("u", "a", View)]
    )
    assert sequences.kinds.tolist() == [View, Like, Skip, Save, View]
    assert sequences.weights.tolist() == [_WEIGHTS[Like], 0, 0, 0, 0]


def test_users_do_not_mix_and_events_of_one_moment_keep_their_order() -> None:
    dataset = _small(
        [("u", "c", View), ("w", "a", View), ("u", "a", Like), ("w", "b", View)], ["a", "b", "c"]
    )
    times = pa.array([5, 5, 5, 5], pa.int64())
    moment = Dataset("moment", dataset.videos, dataset.interactions.set_column(3, "event_time_us", times))
    catalogue = catalogue_of(moment)
    sequences = sequences_of(moment, catalogue, _WEIGHTS)
    videos = [catalogue.video_ids[row].as_py() for row in sequences.videos]
    by_user = {
        user: videos[slice(*sequences.offsets[i : i + 2])] for i, user in enumerate(sequences.user_ids)
    }
    assert by_user == {"u": ["c", "a"], "w": ["a", "b"]}


def test_interactions_with_videos_that_the_catalogue_lacks_are_left_out() -> None:
    dataset = _small([("u", "a", View), ("u", "gone", View), ("u", "b", View)], ["a", "b"])
    sequences = sequences_of(dataset, catalogue_of(dataset), _WEIGHTS)
    assert sequences.videos.tolist() == [0, 1]
