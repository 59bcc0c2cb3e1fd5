"""What training reads of the log: all of it, or what is new to a run and a sample of what is not."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from tqdm import tqdm

from keek_server.interactions.log import InteractionLog
from keek_server.releases.release import clip_is_read
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.storage.tables import interactions
from keek_training.config import FineTuning
from keek_training.datasets.dataset import INTERACTION_SCHEMA, Dataset
from keek_training.datasets.store import load_dataset
from keek_training.features import IS_NEW
from keek_training.hourly.state import LogRange
from keek_training.publishing.clip import choose_clip
from keek_training.publishing.kept import active_release

_USERS_A_QUERY = 500
_DRAWS = 4
"""Rows that are drawn for each user that is wanted: many are of the same users, some are gone."""


@dataclass(frozen=True, slots=True)
class LogData:
    """A data set from the log, and what a later fine-tuning has to know of it."""

    dataset: Dataset
    origin: dict[str, Any]
    """For the run's metrics: `log`, a LogRange, and `clip_model`, whose clip vectors were read."""


async def next_clip_model(database: Database, settings: Settings) -> str:
    """The CLIP that the next release will have; empty for none."""
    clip = choose_clip(None, await active_release(database), settings)
    return clip.record.clip_model if clip else ""


async def read_all(settings: Settings) -> LogData:
    """The whole log, with the clip vectors that the next release will read."""
    async with open_database(settings) as database:
        extent = await InteractionLog(database).extent()
        whole = LogRange(log_id=extent.log_id, after_seq=0, last_seq=extent.last_seq)
        return await _log_data(database, settings, whole, None)


async def read_new(settings: Settings, new: LogRange, tuning: FineTuning, seed: int) -> LogData:
    """The latest interactions of the users who did something new, and of some others.

    Args:
        settings: Name the database.
        new: What is new; nothing behind it is read.
        tuning: How much is read.
        seed: Draws the others: in proportion to what they did.

    Raises:
        UnavailableError: When the database is down or late.
    """
    after_seq = max(new.after_seq, new.last_seq - tuning.most_new)
    async with open_database(settings) as database:
        active = await _users_between(database, after_seq, new.last_seq)
        rng = np.random.default_rng(seed)
        wanted = math.ceil(tuning.replay * len(active))
        others = await _other_users(database, after_seq, wanted, set(active), rng)
        rows = await _rows(database, [*active, *others], new.last_seq, tuning.rows_per_user)
        rows = rows.take(pa.array(np.argsort(rows["event_time_us"].to_numpy(), kind="stable")))
        data = await _log_data(database, settings, new, rows.drop_columns(["seq"]))
    # The interactions were in the order of time already: their rows are still the same.
    is_new = pa.array(rows["seq"].to_numpy() > after_seq)
    marked = data.dataset.interactions.append_column(IS_NEW, is_new)
    return replace(data, dataset=replace(data.dataset, interactions=marked))


async def _log_data(database: Database, settings: Settings, log: LogRange, rows: pa.Table | None) -> LogData:
    own = await next_clip_model(database, settings)
    reads: Callable[[str], bool] = lambda clip_model: clip_is_read(clip_model, own)  # noqa: E731
    dataset = await load_dataset(database, reads, rows, last_seq=log.last_seq)
    return LogData(dataset, {"log": log.model_dump(), "clip_model": own})


async def _users_between(database: Database, after_seq: int, last_seq: int) -> list[str]:
    c = interactions.c
    query = sa.select(c.user_id).distinct().where(c.seq > after_seq, c.seq <= last_seq)
    # It may take longer than one request's transaction is allowed to.
    async with database.engine.connect() as connection:
        return sorted((await connection.execute(query)).scalars())


async def _other_users(
    database: Database, last_seq: int, wanted: int, known: set[str], rng: np.random.Generator
) -> list[str]:
    """The users of random rows up to `last_seq`, about `wanted` of them."""
    c = interactions.c
    found: set[str] = set()
    seqs = (
        np.unique(rng.integers(1, last_seq + 1, _DRAWS * wanted)) if last_seq > 0 else np.empty(0, np.int64)
    )
    for part in _parts(rng.permutation(seqs).tolist()):
        if len(found) >= wanted:
            break
        async with database.read() as connection:
            rows = await connection.execute(sa.select(c.user_id).where(c.seq.in_(part)))
            found.update(user_id for user_id in rows.scalars() if user_id not in known)
    return sorted(found)[:wanted]


async def _rows(database: Database, user_ids: Sequence[str], last_seq: int, limit: int) -> pa.Table:
    """The newest rows of each user, INTERACTION_SCHEMA with `seq`."""
    c = interactions.c
    names = ["seq", *INTERACTION_SCHEMA.names]
    schema = pa.schema([pa.field("seq", pa.int64()), *INTERACTION_SCHEMA])
    number = sa.func.row_number().over(partition_by=c.user_id, order_by=c.seq.desc()).label("number")
    tables = [schema.empty_table()]
    with tqdm(total=len(user_ids), unit="user", desc="reading the log", disable=None) as progress:
        for part in _parts(user_ids):
            ranked = (
                sa.select(*(c[name] for name in names), number)
                .where(c.user_id.in_(part), c.seq <= last_seq)
                .subquery()
            )
            query = sa.select(*(ranked.c[name] for name in names)).where(ranked.c.number <= limit)
            async with database.engine.connect() as connection:
                rows = (await connection.execute(query.order_by(ranked.c.seq))).all()
            if rows:
                columns = zip(zip(*rows, strict=True), schema.types, strict=True)
                tables.append(pa.table([pa.array(values, type_) for values, type_ in columns], schema))
            progress.update(len(part))
    return pa.concat_tables(tables).sort_by("seq")


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + _USERS_A_QUERY] for start in range(0, len(values), _USERS_A_QUERY))
