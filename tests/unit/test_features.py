"""What training reads is what serving would have asked the tower at that moment."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from keek_server.feed.history import history_inputs
from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.kinds import InteractionKind
from keek_server.releases.release import Corpus
from keek_server.retrieval.fresh import VECTORS
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import MAX_TAGS, hash_ids, pad_tags, video_features
from keek_server.towers.users import user_batch
from keek_training.datasets.dataset import INTERACTION_SCHEMA, VIDEO_SCHEMA, Dataset
from keek_training.features import catalogue_of, sequences_of
from keek_training.windows import Windows, fill

LENGTH = 8
VIDEOS = [f"v{i}" for i in range(40)]


@dataclass
class Event:
    user_id: str
    video_id: str
    kind: int
    event_time_us: int


def events(seed: int) -> list[Event]:
    """Users with one to thirty interactions; repeats of a video are kept, as histories keep them."""
    rng = np.random.default_rng(seed)
    made = [
        Event(f"u{user}", f"v{rng.integers(40)}", int(rng.integers(1, 6)), int(time_us))
        for user in range(20)
        for time_us in np.sort(rng.choice(10**12, rng.integers(1, 31), replace=False))
    ]
    return sorted(made, key=lambda event: event.event_time_us)


def dataset(rows: list[Event]) -> Dataset:
    videos = [
        {
            "video_id": video_id,
            "owner_id": f"o{i % 7}" if i % 5 else "",
            "tags": [f"t{j}" for j in range(i % 4)],
            "duration_s": float(i),
            "title": "",
            "create_time_us": 0,
            "language": "",
            "region": "",
        }
        for i, video_id in enumerate(VIDEOS)
    ]
    return Dataset(
        "test",
        pa.Table.from_pylist(videos, VIDEO_SCHEMA),
        pa.Table.from_pylist([vars(row) for row in rows], INTERACTION_SCHEMA),
    )


@pytest.mark.parametrize("seed", range(5))
def test_training_windows_equal_what_serving_asks_at_the_moment_of_the_request(seed: int) -> None:
    rows = events(seed)
    data = dataset(rows)
    catalogue = catalogue_of(data)
    sequences = sequences_of(data, catalogue, {InteractionKind.LIKE: 1.0, InteractionKind.VIEW: 1.0})
    vectors = np.random.default_rng(seed).normal(size=(len(VIDEOS), DIMENSION)).astype(np.float32)
    corpus = Corpus.build(VIDEOS, {VECTORS: vectors}, np.ones(len(VIDEOS), np.int64))
    for user, user_id in enumerate(sequences.user_ids):
        start, stop = int(sequences.offsets[user]), int(sequences.offsets[user + 1])
        own = [row for row in rows if row.user_id == user_id]
        for end in range(start + 1, stop):
            window = Windows(*(np.array([value]) for value in (user, start, end, end - 1)))
            filled = fill(sequences, window, LENGTH)
            before = own[: end - start][-LENGTH:]
            history = [HistoryEntry(e.video_id, InteractionKind(e.kind), e.event_time_us) for e in before]
            request_us = own[end - start].event_time_us
            served = user_batch([history_inputs(corpus, user_id, history, request_us)])
            width = served["history_kinds"].shape[1]
            np.testing.assert_array_equal(filled.users, served["user"])
            np.testing.assert_array_equal(filled.kinds[:, -width:], served["history_kinds"])
            assert not filled.kinds[:, :-width].any()
            np.testing.assert_allclose(filled.ages_s[:, -width:], served["history_ages_s"], rtol=1e-6)
            trained = vectors[filled.videos] * (filled.kinds > 0)[..., None]
            np.testing.assert_array_equal(trained[:, -width:], served["history_vectors"])


def test_the_catalogue_in_training_is_encoded_as_the_publisher_encodes_it() -> None:
    data = dataset([])
    columns = data.videos.to_pydict()
    published = video_features(
        columns["video_id"], columns["owner_id"], columns["tags"], columns["duration_s"]
    )
    for name, values in catalogue_of(data).features.items():
        np.testing.assert_array_equal(values, published[name])


def test_hashes_are_stable_distinct_and_zero_for_unknown_ids() -> None:
    # Recorded: another hash would make every published tower read other rows than it trained.
    assert hash_ids(["u1", ""]).tolist() == [[88956401, 1323307683], [0, 0]]
    hashes = hash_ids([f"u{i}" for i in range(10_000)])
    assert (hashes > 0).all()
    assert len({tuple(row) for row in hashes.tolist()}) == 10_000


def test_ids_are_hashed_alike_alone_and_among_others() -> None:
    ids = [*(f"id{i}" for i in range(50)), "", "übergröße", "😀", "a" * 300, "id1"]
    together = hash_ids(ids)
    for id_, row in zip(ids, together, strict=True):
        digest = xxhash.xxh3_64_intdigest(id_.encode())
        halves = [max(digest & 0x7FFF_FFFF, 1), max(digest >> 33, 1)] if id_ else [0, 0]
        assert row.tolist() == halves == hash_ids([id_])[0].tolist()


def test_tags_are_hashed_as_ids_are() -> None:
    tags = [["a", "b", "a"], [], ["", "ß"], ["b"]]
    for row, own in zip(pad_tags(tags), tags, strict=True):
        assert row[: len(own)].tolist() == hash_ids(own)[:, 0].tolist()
        assert not row[len(own) :].any()


def test_tags_are_padded_and_clipped() -> None:
    padded = pad_tags([["a", "b"], [], ["c"] * 40])
    assert padded.shape == (3, MAX_TAGS)
    assert (padded > 0).sum(axis=1).tolist() == [2, 0, MAX_TAGS]
    assert pad_tags([[], []]).shape == (2, 1)
