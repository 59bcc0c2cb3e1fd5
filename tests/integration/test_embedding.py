"""The corpus through Triton: every row what the model alone gives, by shared memory and by message."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from embedded_towers import publish, user_tower, video_tower
from pydantic import SecretStr

from keek_server.embedded import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.retrieval.index import Vectors
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.towers.client import open_towers
from keek_server.towers.contract import CLIP_DIMENSION, USER_TOWER, VIDEO_TOWER
from keek_server.towers.features import video_features
from keek_server.towers.lanes import open_lanes
from keek_server.towers.shared_memory import SharedMemory
from keek_training.publishing.catalogue import Catalogue
from keek_training.publishing.checkpoint import Checkpoint
from keek_training.publishing.embedding import embed

pytestmark = pytest.mark.usefixtures("unhurried_triton")


def segments() -> list[str]:
    """What this process has mapped of shared memory for lanes, as the kernel lists it."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "keek-lanes-" in line]


@pytest.fixture(scope="module")
async def serving(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EmbeddedStack]:
    """A stack of this file's own, with version 1 of each tower."""
    settings = settings_in(tmp_path_factory.mktemp("embedding"))
    publish(user_tower(USER_TOWER, 1.0), settings.model_repository, "user_tower", 1)
    publish(video_tower(VIDEO_TOWER), settings.model_repository, "video_tower", 1)
    async with EmbeddedStack(settings) as stack:
        yield stack


@pytest.fixture(params=["shared memory", "message"])
def settings(request: pytest.FixtureRequest, serving: EmbeddedStack) -> Settings:
    """Of a publisher that may share memory with Triton, and of one that may not."""
    if request.param == "shared memory":
        return serving.settings
    return serving.settings.model_copy(update={"triton_control_token": SecretStr("wrong")})


def catalogue(count: int) -> Catalogue:
    """Videos with and without owner, tags, duration and clip vector; some have more tags than are read."""
    rng = np.random.default_rng(count)
    clips = rng.normal(size=(count, CLIP_DIMENSION)).astype(np.float16)
    clips[::3] = 0
    return Catalogue(
        seq=0,
        video_ids=[f"v{i}" for i in range(count)],
        owner_ids=[f"o{i % 50}" if i % 4 else "" for i in range(count)],
        tags=[[f"t{j}" for j in range(i % 20)] for i in range(count)],
        durations_s=rng.uniform(0, 60, count).round().tolist(),
        clip_vectors=clips,
    )


def alone(settings: Settings, videos: Catalogue) -> Vectors:
    """What ONNX Runtime makes of the same videos, a row at a time together."""
    model = settings.model_repository / "video_tower" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    features = video_features(
        videos.video_ids, videos.owner_ids, videos.tags, videos.durations_s, videos.clip_vectors
    )
    vectors: Vectors = session.run(["video_vector"], features)[0]
    return vectors


# Fewer than a core's share; one batch; full batches for each lane, and an odd last one.
@pytest.mark.parametrize("count", [1, 1023, 4096, 4 * 4096 + 1027])
async def test_every_row_is_what_the_model_alone_gives(settings: Settings, count: int) -> None:
    videos = catalogue(count)
    async with open_towers(settings) as towers:
        assert await towers.max_batch_size(VIDEO_TOWER, 1) == 4096
        vectors = await embed(towers, 1, videos)
    np.testing.assert_array_equal(vectors, alone(settings, videos))


async def test_an_empty_catalogue_gives_no_vectors(settings: Settings) -> None:
    async with open_towers(settings) as towers:
        assert (await embed(towers, 1, Catalogue(0))).shape == (0, 64)


async def test_memory_is_shared_with_the_token_and_not_without(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "keek_server.towers.lanes")
    async with (
        open_towers(settings) as towers,
        open_lanes(towers, VIDEO_TOWER, 1, count=2, rows=8, free=16) as lanes,
    ):
        by_message = "by message" in caplog.text
        assert by_message == (settings.triton_control_token == SecretStr("wrong"))
        # Nothing would be left of it if this process were killed now.
        assert all(segment.endswith("(deleted)") for segment in segments())
        assert by_message or segments()
        assert len(lanes) == 2


async def test_lanes_at_once_do_not_mix_their_batches(settings: Settings) -> None:
    parts = [catalogue(size) for size in (5, 8, 3)]
    async with (
        open_towers(settings) as towers,
        open_lanes(towers, VIDEO_TOWER, 1, count=3, rows=8, free=16) as lanes,
    ):
        for lane, part in zip(lanes, parts, strict=True):
            lane.load(
                video_features(part.video_ids, part.owner_ids, part.tags, part.durations_s, part.clip_vectors)
            )
        for lane, part in zip(lanes, parts, strict=True):
            found = await lane.vectors(deadline_s=30.0)
            np.testing.assert_array_equal(found, alone(settings, part))


async def test_a_batch_larger_than_its_lane_is_refused(serving: EmbeddedStack) -> None:
    part = catalogue(40)
    features = video_features(part.video_ids, part.owner_ids, part.tags, part.durations_s, part.clip_vectors)
    async with (
        open_towers(serving.settings) as towers,
        open_lanes(towers, VIDEO_TOWER, 1, count=2, rows=8, free=16) as lanes,
    ):
        with pytest.raises(ValueError, match="more than its lane has"):
            lanes[0].load(features)


async def test_a_version_that_is_not_there_fails_with_one_plain_error(settings: Settings) -> None:
    async with open_towers(settings) as towers:
        with pytest.raises(UnavailableError):
            await embed(towers, 7, catalogue(10))
        async with open_lanes(towers, VIDEO_TOWER, 7, count=1, rows=16, free=16) as lanes:
            part = catalogue(10)
            lanes[0].load(
                video_features(part.video_ids, part.owner_ids, part.tags, part.durations_s, part.clip_vectors)
            )
            with pytest.raises(UnavailableError):
                await lanes[0].vectors(deadline_s=30.0)


def test_more_shared_memory_than_there_is_is_refused_when_it_is_asked_for() -> None:
    before = segments()
    with pytest.raises(OSError, match=r"\[Errno"):
        SharedMemory(1 << 50)
    assert segments() == before


async def test_an_embedding_that_was_cut_off_goes_on_and_gives_the_same(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = catalogue(5 * 4096 + 1027)
    asked: list[int] = []
    async with open_database(settings) as database, open_towers(settings) as towers:
        infer = towers.infer

        async def counted(*arguments: Any, **named: Any) -> Any:
            if len(asked) == limit:
                raise UnavailableError("Triton went away")
            asked.append(arguments[2][0].shape()[0])
            return await infer(*arguments, **named)

        # Of this connection alone: other tests' servers run in this process.
        monkeypatch.setattr(towers, "infer", counted)
        path = tmp_path / "vectors"
        limit = 3
        with pytest.raises(UnavailableError, match="went away"):
            await embed(towers, 1, videos, await Checkpoint.open(path, "towers", 0, database))
        kept = await Checkpoint.open(path, "towers", 0, database)
        found = np.empty((len(videos), 64), np.float32)
        have = int(kept.restore(videos, found).sum())
        assert have % 4096 == 0
        assert 0 < have <= 3 * 4096
        asked.clear()
        limit = 1000
        vectors = await embed(towers, 1, videos, kept)
        assert sum(asked) == len(videos) - have
        np.testing.assert_array_equal(vectors, alone(settings, videos))
        asked.clear()
        # Rows that do not follow each other.
        videos.video_ids[5] += "changed"
        videos.video_ids[4999] += "changed"
        again = await embed(towers, 1, videos, await Checkpoint.open(path, "towers", 0, database))
        assert sum(asked) == 2
        np.testing.assert_array_equal(again, alone(settings, videos))
