"""The videos that CLIP has yet to see, in SQL: leased, so that what a dead server took is taken again."""

from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.storage.database import Database
from keek_server.storage.tables import clip_vectors, videos
from keek_server.storage.tables import embedding_queue as table
from keek_server.videos.changes import advance_clock
from keek_server.videos.video import ClipVector, VideoState

LEASE_S = 20.0
"""How long the server that takes an upload has its video to itself; CLIP sees it in less."""
LEASE_AGAIN_S = 75.0
"""The same for a video that has to be decoded again."""

_AT_ONCE = 4
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Queued:
    """A video that a server has to itself for a while."""

    video_id: str
    token: int
    """Names the file: what was queued for another file of the video is not finished by this."""
    lease_until_us: int
    failures: int = 0
    """How often it could not be decoded."""

    @classmethod
    def new(cls, video_id: str, token: int) -> "Queued":
        """One that the server embeds at once."""
        return cls(video_id, token, now_us() + int(LEASE_S * 1e6))

    def as_row(self, clip_model: str = "") -> dict[str, Any]:
        """Its row in the queue."""
        return {**asdict(self), "clip_model": clip_model}


@dataclass(frozen=True, slots=True)
class Left:
    """A video whose lease has run out, leased anew."""

    queued: Queued
    original_url: str


class EmbeddingQueue:
    """Takes videos from the queue, and ends their waiting."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, clip_model: str) -> list[Left]:
        """Some videos whose lease has run out, and that this CLIP may see, with a new lease."""

        def work(connection: sa.Connection) -> list[Left]:
            lease_until_us = now_us() + int(LEASE_AGAIN_S * 1e6)
            free = (
                sa.select(table.c.video_id, table.c.token, table.c.failures, videos.c.original_url)
                .join(videos, videos.c.video_id == table.c.video_id)
                .where(
                    table.c.lease_until_us < now_us(),
                    table.c.clip_model.in_(("", clip_model)),
                    videos.c.state != VideoState.DELETED,
                )
                .order_by(table.c.lease_until_us)
                .limit(_AT_ONCE)
                .with_for_update(of=table, skip_locked=True)
            )
            left = [
                Left(Queued(video_id, token, lease_until_us, failures), url)
                for video_id, token, failures, url in connection.execute(free)
            ]
            ids = [one.queued.video_id for one in left]
            lease = table.update().where(table.c.video_id.in_(ids))
            if ids:
                connection.execute(lease.values(lease_until_us=lease_until_us))
            return left

        return await self._database.transact(work)

    async def finish(self, queued: Queued, vector: ClipVector | None) -> bool:
        """Makes a video READY, in one transaction with its vector.

        Returns:
            False when it was deleted, has another file, or was finished by another server.
        """
        upsert = self._database.upsert(clip_vectors)
        done = table.delete().where(*_same(queued))
        own = videos.update().where(
            videos.c.video_id == queued.video_id, videos.c.state != VideoState.DELETED
        )

        def work(connection: sa.Connection) -> bool:
            seq = advance_clock(connection, 1)
            if not connection.execute(done).rowcount:
                return False
            ready = {"state": VideoState.READY, "change_seq": seq}
            if not connection.execute(own.values(ready)).rowcount:
                return False
            if vector is not None:
                row = {
                    "video_id": queued.video_id,
                    "clip_model": vector.clip_model,
                    "vector": vector.content,
                }
                connection.execute(upsert, [row])
            return True

        return await self._database.transact(work)

    async def give_back(self, queued: Queued, *, after_s: float = 0.0, failed: bool = False) -> None:
        """Leaves a video to whoever looks next, unless another server has it by now.

        Args:
            queued: As it was taken.
            after_s: How long it is left alone.
            failed: Whether it could not be decoded.
        """
        own = table.update().where(*_same(queued), table.c.lease_until_us == queued.lease_until_us)
        values = {
            "lease_until_us": now_us() + int(after_s * 1e6) if after_s else 0,
            "failures": table.c.failures + int(failed),
        }

        def work(connection: sa.Connection) -> None:
            connection.execute(own.values(values))

        await self._database.transact(work)

    async def add_unread(self, clip_model: str, video_id: str | None = None) -> None:
        """Queues videos with a file that this CLIP has not seen: all of them, or one.

        In transactions of a bounded size, so that nobody waits for it.
        """
        if video_id is not None:
            await self._queue([video_id], clip_model)
            return
        last = ""
        while ids := await self._uploaded(last):
            await self._queue(ids, clip_model)
            last = ids[-1]

    async def _uploaded(self, after: str) -> list[str]:
        query = sa.select(videos.c.video_id).where(videos.c.video_id > after, videos.c.original_url != "")
        async with self._database.read() as connection:
            return list((await connection.execute(query.order_by(videos.c.video_id).limit(_PAGE))).scalars())

    async def _queue(self, ids: list[str], clip_model: str) -> None:
        """Queues those of `ids` that have no vector of this CLIP, under the change that they are at."""
        own = clip_vectors.c.clip_model
        unread = (
            sa.select(
                videos.c.video_id, videos.c.change_seq, sa.literal(clip_model), sa.literal(0), sa.literal(0)
            )
            .select_from(videos.outerjoin(clip_vectors, clip_vectors.c.video_id == videos.c.video_id))
            .where(
                videos.c.video_id.in_(ids),
                videos.c.original_url != "",
                videos.c.state == VideoState.READY,
                sa.or_(own.is_(None), own.not_in(("", clip_model))),
            )
        )
        names = ["video_id", "token", "clip_model", "lease_until_us", "failures"]
        insert = (
            self._database.insert(table)
            .from_select(names, unread)
            .on_conflict_do_update(
                # Whoever queued it for another CLIP: that one is not the newest any more.
                index_elements=[table.c.video_id],
                set_={"clip_model": clip_model, "lease_until_us": 0, "failures": 0},
            )
        )

        def work(connection: sa.Connection) -> None:
            # So that the insert sees what deletions under way leave; it makes no change itself.
            advance_clock(connection, 0)
            connection.execute(insert)

        await self._database.transact(work)


def _same(queued: Queued) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.video_id == queued.video_id, table.c.token == queued.token
