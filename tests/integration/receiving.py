"""What tests of videos on their way in share: a small clip, a server without CLIP, a look into the store."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from benchmarks.clips import any_clip, clip_bytes

from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.cleaner import Cleaner
from keek_server.videos.decoding.decoder import Decoder
from keek_server.videos.decoding.types import FrameShape
from keek_server.videos.ingest import Ingest
from keek_server.videos.media import MediaStore
from keek_server.videos.receiver import Receiver
from keek_server.videos.slots import Slots
from keek_server.videos.uploads import Uploads
from keek_server.videos.video import Video
from keek_server.videos.watch import VideoWatch

CLIP = clip_bytes(any_clip(3, duration_s=1.5))
CHUNK = 4096
STORAGES = ["folder", "objects"]


class NoClip:
    """Stands for the embedder of a server whose release has no CLIP."""

    def frame_shape(self) -> FrameShape | None:
        return None

    def changed(self) -> None:
        pass

    async def queue_if_unread(self, video_id: str) -> None:
        pass


def video(video_id: str) -> Video:
    return Video(video_id, "ann", ["cats"], 0.0, "A cat", 1_700_000_000_000_000)


def with_storage(settings: Settings, kind: str) -> Settings:
    """Settings with a folder as the storage, or with an object store (fsspec's in-memory one)."""
    if kind == "folder":
        return settings
    return settings.model_copy(update={"media_url": f"memory://{uuid.uuid4().hex}/media"})


def clean_up(database: Database, media: MediaStore, settings: Settings, **changes: object) -> Cleaner:
    return Cleaner(database, Uploads(database), media, settings.model_copy(update=changes))


def kept(media: MediaStore) -> list[str]:
    """Every file in the store, by its place below the root."""
    media._fs.invalidate_cache()
    return sorted(path.removeprefix(f"{media._root}/") for path in media._fs.find(media._root))


async def stored_bytes(media: MediaStore, url: str) -> bytes:
    target = media.scratch / "check"
    await media.fetch(url, target, max_bytes=10**9)
    return await asyncio.to_thread(target.read_bytes)


def new_receiver(database: Database, media: MediaStore, decoder: Decoder, settings: Settings) -> Receiver:
    catalogue = Catalogue(database)
    ingest = Ingest(database, catalogue, media, decoder, NoClip(), settings)  # type: ignore[arg-type]
    slots = Slots(settings.upload_limit, "uploads")
    return Receiver(Uploads(database), catalogue, media, ingest, slots, settings)


def watching(database: Database, limit: int = 8) -> VideoWatch:
    return VideoWatch(Uploads(database), Catalogue(database), Slots(limit, "watchers"), poll_s=0.02)


async def chunks(content: bytes, *, fail: BaseException | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(content), CHUNK):
        yield content[start : start + CHUNK]
    if fail is not None:
        raise fail


async def send(
    receiver: Receiver, upload_id: uuid.UUID, *, offset: int = 0, content: bytes = CLIP, size: int = len(CLIP)
) -> Video:
    return await receiver.receive(upload_id, video("v1"), size, offset, chunks(content[offset:]))


async def cut_off(receiver: Receiver, upload_id: uuid.UUID, *, start: int = 0, end: int) -> None:
    """A call that dies after some bytes."""
    with pytest.raises(ConnectionError):
        await receiver.receive(
            upload_id, video("v1"), len(CLIP), start, chunks(CLIP[start:end], fail=ConnectionError())
        )
    await receiver.aclose()
