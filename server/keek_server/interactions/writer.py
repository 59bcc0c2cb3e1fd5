"""Writing the projection of the log in Redis, by whoever holds its lease.

Every change goes through one Lua call that checks the lease and moves the watermark.
"""

import asyncio
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from keek_server.errors import KeekError
from keek_server.interactions.connection import redis_deadline
from keek_server.interactions.encode import RowEncoder
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.log import LogExtent
from keek_server.interactions.rows import LoggedInteraction, tail_of
from keek_server.settings import Settings

ROWS_A_CALL = 50
"""Keeps a call at one or two milliseconds, a few with a million videos that trend: Redis answers
nobody else meanwhile."""

_CALLS_AT_ONCE = 2
_PROJECT_KEYS = 2
_DEADLINE_S = 5.0
_KEYS_A_SCAN = 500


class LeaseLostError(KeekError):
    """Another projector has taken over, or Redis has lost its memory."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write, for some seconds."""

    token: str
    rebuild_wanted: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of the projection, as its state in Redis says."""

    number: int
    seq: int
    """The watermark."""
    tail: str
    """What the row at the watermark is recognised by; empty before the first."""
    source: str
    """What it was built from: `ProjectionWriter.source`."""


class ProjectionWriter:
    """Takes the lease, applies rows, builds and drops generations."""

    def __init__(self, redis: Redis, keys: ProjectionKeys, settings: Settings) -> None:
        self._redis = redis
        self._keys = keys
        self._encoder = RowEncoder(settings)
        self._lease_ms = int(settings.projection_lease_s * 1000)
        self._lease, self._project, self._generation = (
            redis.register_script(load_script(name)) for name in ("lease", "project", "generation")
        )

    def source(self, extent: LogExtent) -> str:
        """Differs when a replay of the log would give another projection than one built before."""
        return json.dumps([extent.log_id, extent.pruned_seq, self._encoder.fingerprint])

    def has_these_settings(self, generation: Generation) -> bool:
        """Whether rows may be added to it: it was built with the settings that this one has."""
        built_with: str = json.loads(generation.source)[-1]
        return built_with == self._encoder.fingerprint

    async def acquire(self, token: str = "") -> Lease | None:
        """Takes the lease, or keeps the one with `token`; None when it is another's.

        A lease that ran out is taken anew, with another token: whatever the old one had read must be
        read again.
        """
        keys = [self._keys.lease, self._keys.fence, self._keys.rebuild]
        async with redis_deadline(_DEADLINE_S):
            answer = await self._lease(keys=keys, args=[token, uuid.uuid4().hex, self._lease_ms])
        return Lease(answer[0], bool(answer[1])) if answer else None

    async def release(self, token: str) -> None:
        """Gives the lease back, so that another need not wait for its end.

        Raises:
            LeaseLostError: When the lease is another's by now.
        """
        await self._change(token, "release")

    async def want_rebuild(self) -> None:
        """Asks whoever holds the lease to build the projection anew."""
        async with redis_deadline(_DEADLINE_S):
            await self._redis.set(self._keys.rebuild, 1)

    async def current(self) -> Generation | None:
        """The generation that is read; None when there is none, as in an empty Redis."""
        async with redis_deadline(_DEADLINE_S):
            number: Any = await self._redis.get(self._keys.current)
            state: Any = await self._redis.hgetall(self._keys.state(number)) if number else None
        if not state:
            return None
        return Generation(int(number), int(state["seq"]), state.get("tail", ""), state["source"])

    async def seq_of(self, generation: int) -> int:
        """The watermark of a generation; 0 when there is no such generation."""
        async with redis_deadline(_DEADLINE_S):
            return int(await self._redis.hget(self._keys.state(generation), "seq") or 0)

    async def begin(self, token: str, source: str, seq: int = 0) -> int:
        """Begins a generation from the rows behind a number; nobody reads it yet.

        Raises:
            LeaseLostError: When the lease is another's by now.
        """
        return await self._change(token, "begin", source, seq)

    async def publish(self, token: str, generation: int) -> None:
        """Makes a generation the one that is read.

        Raises:
            LeaseLostError: When the lease is another's by now.
        """
        await self._change(token, "publish", generation)

    async def retract(self, token: str) -> None:
        """Leaves readers without a generation: what they would read was never in the log.

        Raises:
            LeaseLostError: When the lease is another's by now.
        """
        await self._change(token, "retract")

    async def apply(
        self, token: str, generation: int, after_seq: int, rows: Sequence[LoggedInteraction]
    ) -> int:
        """Applies rows that were read behind `after_seq`, unless the watermark has moved meanwhile.

        Returns:
            The watermark that stands now; go on reading from there.

        Raises:
            LeaseLostError: When the lease is another's by now, or the generation is gone.
        """
        calls = self._calls(token, generation, after_seq, rows)
        ready = list(islice(calls, _CALLS_AT_ONCE))
        while ready:
            sent = asyncio.ensure_future(self._send(ready))
            try:
                # The next calls are made ready while Redis works on these.
                await asyncio.sleep(0)
                ready = list(islice(calls, _CALLS_AT_ONCE))
                after_seq = await sent
            finally:
                sent.cancel()
        return after_seq

    def _calls(
        self, token: str, generation: int, after_seq: int, rows: Sequence[LoggedInteraction]
    ) -> Iterator[list[Any]]:
        """What is sent for each part of the rows; a call does nothing unless the one before it did."""
        keys = [self._keys.lease, self._keys.state(generation)]
        prefix = self._keys.generation(generation)
        for start in range(0, len(rows), ROWS_A_CALL):
            part = rows[start : start + ROWS_A_CALL]
            fixed = [token, self._lease_ms, after_seq, prefix, self._encoder.limits]
            yield [*keys, *fixed, self._encoder.encode(part), tail_of(part[-1])]
            after_seq = part[-1].seq

    async def _send(self, calls: list[list[Any]]) -> int:
        """Makes calls in one round trip; returns the watermark that stands after them."""
        async with redis_deadline(_DEADLINE_S):
            try:
                standing = await self._evaluate(calls)
            except NoScriptError:
                await self._redis.script_load(self._project.script)
                standing = await self._evaluate(calls)
        if standing is None or standing < 0:
            raise LeaseLostError("the projection is another's to write")
        return standing

    async def _evaluate(self, calls: list[list[Any]]) -> int | None:
        pipeline = self._redis.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(self._project.sha, _PROJECT_KEYS, *call)
        answers: list[int | None] = await pipeline.execute()
        return answers[-1]

    async def generations(self) -> list[int]:
        """Those that exist: the current one, one that is being built, and what a crash left."""
        async with redis_deadline(_DEADLINE_S):
            known: Any = await self._redis.hkeys(self._keys.generations)
        return sorted(int(name) for name in known if name != "next")

    async def drop_before(self, generation: int) -> None:
        """Removes all older generations, a little at a time.

        Safe also for a projector that has lost its lease meanwhile: what others build is newer.
        """
        for number in await self.generations():
            if number < generation:
                await self._drop(number)

    async def _drop(self, number: int) -> None:
        cursor, pattern = 0, f"{_escaped(self._keys.generation(number))}*"
        while True:
            async with redis_deadline(_DEADLINE_S):
                cursor, found = await self._redis.scan(cursor, match=pattern, count=_KEYS_A_SCAN)
                if found:
                    await self._redis.unlink(*found)
            if cursor == 0:
                break
        async with redis_deadline(_DEADLINE_S):
            await self._redis.hdel(self._keys.generations, str(number))

    async def _change(self, token: str, what: str, *details: str | int) -> int:
        arguments = [token, self._keys.prefix, what, *details]
        async with redis_deadline(_DEADLINE_S):
            generation = await self._generation(keys=self._generation_keys(), args=arguments)
        if generation is None:
            raise LeaseLostError("the projection is another's to write")
        return int(generation)

    def _generation_keys(self) -> list[str]:
        return [self._keys.lease, self._keys.current, self._keys.generations, self._keys.rebuild]


def load_script(name: str) -> str:
    """The text of one of the Lua scripts beside this module."""
    return resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8")


def _escaped(pattern: str) -> str:
    """The text as a glob pattern that matches nothing else."""
    return "".join(f"\\{character}" if character in r"*?[]\^" else character for character in pattern)
