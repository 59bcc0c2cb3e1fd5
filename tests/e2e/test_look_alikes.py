"""What CLIP sees decides who is shown a new video: towers trained on looks alone."""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from benchmarks.clips import Clip, Scene, pictures, write_clip
from patience import DEADLINES, TIMEOUTS
from serving import WITH_CLIP, command

import keek
import keek.aio
from keek_server.app import open_app
from keek_server.embedded import EmbeddedStack
from keek_server.interactions.append import Interaction
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import InteractionLog
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.towers.clip_record import ClipRecord
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import ClipVector, Video

pytestmark = pytest.mark.skipif(not WITH_CLIP, reason="needs the extra clip, to export CLIP")

LOOKS = ((0.0, "disc"), (0.33, "stripes"), (0.66, "checkers"), (0.15, "squares"))
VIDEOS_A_LOOK, USERS_A_LOOK, LIKES = 15, 60, 9
START_US = 1_700_000_000_000_000
PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
PRETRAINED = os.environ.get("KEEK_TEST_CLIP", "")
"""MODEL=TAG or MODEL=PATH of pretrained weights, where there are any."""


def clip_of(look: int, seed: int) -> Clip:
    """One of a family: the same pattern on nearly the same colour."""
    hue, pattern = LOOKS[look]
    shade = float(np.random.default_rng(seed).uniform(-0.03, 0.03))
    scene = Scene((hue + shade) % 1.0, pattern, 0.6)  # type: ignore[arg-type]
    return Clip(seed=seed, width=224, height=224, scenes=(scene,))


@dataclass
class Gallery:
    """A server whose videos have nothing but their looks: no tags, no owners."""

    client: keek.aio.Client


async def keek_train(stack: EmbeddedStack, *arguments: str) -> None:
    done = await asyncio.to_thread(command, stack, "keek-train", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def looks(settings: Settings) -> dict[str, bytes]:
    """The clip vectors of all videos, by the exported encoder."""
    folder = settings.data_dir / "clip" / "latest"
    record = ClipRecord.load(folder)
    session = onnxruntime.InferenceSession(folder / "clip_image.onnx")
    vectors = {}
    for look in range(len(LOOKS)):
        for i in range(VIDEOS_A_LOOK):
            frames = list(pictures(clip_of(look, 100 * look + i)))[::5]
            size = (record.image_size, record.image_size)
            pixels = np.stack([np.asarray(frame.resize(size)).transpose(2, 0, 1) for frame in frames])
            (own,) = session.run(None, {"pixels": pixels})
            mean = own.mean(axis=0)
            vectors[f"look{look}-{i}"] = (mean / np.linalg.norm(mean)).astype("<f2").tobytes()
    return vectors


async def fill(settings: Settings) -> None:
    """Videos with clip vectors, and users who each like one look."""
    rng = np.random.default_rng(1)
    vectors = await asyncio.to_thread(looks, settings)
    async with open_database(settings) as database:
        videos = [Video(video_id, "", [], 0.0, "", 0) for video_id in vectors]
        await Catalogue(database).put(videos, {id_: ClipVector("", own) for id_, own in vectors.items()})
        likes = [
            (order, f"fan{look}-{user}", f"look{look}-{i}")
            for look in range(len(LOOKS))
            for user in range(USERS_A_LOOK)
            for order, i in enumerate(rng.permutation(VIDEOS_A_LOOK)[:LIKES])
        ]
        events = [
            Interaction(
                uuid.uuid4().hex,
                user_id,
                video_id,
                InteractionKind.LIKE,
                1_700_000_000_000_000 + order * 10**7,
            )
            for order, user_id, video_id in sorted(likes)
        ]
        await InteractionLog(database).commit([events])


@pytest.fixture(scope="module")
async def gallery(
    published: EmbeddedStack, settings_in: Callable[[Path], Settings]
) -> AsyncIterator[Gallery]:
    with tempfile.TemporaryDirectory(prefix="keek-") as directory:
        settings = settings_in(Path(directory))
        if not PRETRAINED:
            shutil.copytree(published.settings.data_dir / "clip", settings.data_dir / "clip")
        async with running_gallery(settings) as running:
            yield running


@asynccontextmanager
async def running_gallery(settings: Settings) -> AsyncIterator[Gallery]:
    """From an empty stack to a release that was trained on looks."""
    async with EmbeddedStack(settings) as stack:
        config = stack.settings.data_dir / "train.json"
        config.write_text('{"epochs": 12, "jit": false, "towers": {"id_dropout": 0.7}}')
        model, _, weights = PRETRAINED.partition("=")
        await keek_train(
            stack, "export-clip", *(("--model", model, "--pretrained", weights) if model else ())
        )
        await fill(stack.settings)
        await keek_train(stack, "train", "--config", str(config))
        await keek_train(stack, "export")
        await keek_train(stack, "publish")
        settings = stack.settings.model_copy(update={"listen": "127.0.0.1:0", **DEADLINES})
        async with (
            open_app(settings) as app,
            keek.aio.Client(f"127.0.0.1:{app.port}", timeouts=TIMEOUTS) as client,
        ):
            await asyncio.wait_for(app.live.wait(), 60)
            yield Gallery(client)


async def upload(gallery: Gallery, folder: Path, look: int) -> str:
    video_id = f"new{look}"
    await gallery.client.upload_video(
        write_clip(clip_of(look, 1000 + look), folder), keek.Video(video_id=video_id)
    )
    async for _ in gallery.client.watch_video(video_id):
        pass
    async with asyncio.timeout(60):
        while True:
            try:
                await gallery.client.list_similar_videos(video_id)
            except keek.NotFoundError:
                await asyncio.sleep(0.05)
            else:
                return video_id


async def personalised(gallery: Gallery, user_id: str) -> list[str]:
    items = (await gallery.client.list_feed(user_id, page_size=20)).items
    return [item.video_id for item in items if item.source == PERSONALISED]


async def test_a_new_video_is_in_the_feed_of_a_user_who_liked_only_look_alikes(
    gallery: Gallery, tmp_path: Path
) -> None:
    """Nobody has seen it, it has neither tags nor an owner: its looks are all there is."""
    new = [await upload(gallery, tmp_path, look) for look in range(len(LOOKS))]
    for look, video_id in enumerate(new):
        user_id = f"newcomer{look}"
        for i in range(5):
            await gallery.client.like(user_id, f"look{look}-{i}", wait_for_feed=True)
        feed = await personalised(gallery, user_id)
        alike = 1 + VIDEOS_A_LOOK - 5
        assert video_id in feed[:alike], feed
        # And no new video of another look comes before it.
        assert feed.index(video_id) < min(
            (feed.index(other) for other in new if other in feed and other != video_id), default=99
        )


async def test_look_alikes_are_found_by_their_looks(gallery: Gallery) -> None:
    for look in range(len(LOOKS)):
        found = (await gallery.client.search_videos(video_id=f"look{look}-3", page_size=5)).videos
        assert {hit.video_id.partition("-")[0].replace("new", "look") for hit in found} == {f"look{look}"}


@pytest.mark.skipif(not PRETRAINED, reason="needs pretrained weights: KEEK_TEST_CLIP=MODEL=TAG|PATH")
async def test_a_new_video_is_in_a_text_search(gallery: Gallery, tmp_path: Path) -> None:
    await upload(gallery, tmp_path, 1)
    found = await gallery.client.search_videos("diagonal stripes", page_size=VIDEOS_A_LOOK)
    assert not found.clip_untrained
    assert "new1" in [hit.video_id for hit in found.videos]
