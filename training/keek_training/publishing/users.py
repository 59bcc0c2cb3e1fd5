"""The users of a release: the vectors of those who were active last."""

from itertools import islice

import numpy as np
import sqlalchemy as sa
from tqdm import tqdm

from keek_server.clock import now_us
from keek_server.feed.history import served_inputs
from keek_server.releases.release import Corpus
from keek_server.retrieval.index import Vectors
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import DIMENSION
from keek_server.towers.users import UserInputs, background_vectors
from keek_training.histories import read_histories

_READ = 256
"""Users whose histories are read together."""


async def embed_users(
    database: Database,
    towers: TowerClient,
    version: int,
    corpus: Corpus,
    *,
    history_length: int,
    limit: int,
) -> tuple[list[str], Vectors]:
    """The users who interacted last, with their vectors as the server would ask for them.

    Users without an interaction with any video of the corpus are left out.

    Args:
        database: Its log is read.
        towers: Asked for the vectors.
        version: Of the user tower.
        corpus: Gives the videos' vectors.
        history_length: Interactions that the user tower reads.
        limit: The most users.

    Returns:
        n ids, the latest first, and float32 [n, DIMENSION].
    """
    user_ids: list[str] = []
    vectors = [np.empty((0, DIMENSION), np.float32)]
    now = now_us()
    active = iter(await _active_users(database, limit))
    with tqdm(unit="user", desc="embedding the users", disable=None) as progress:
        while batch := list(islice(active, _READ)):
            users = await _inputs(database, corpus, batch, history_length, now)
            if users:
                vectors.append(await background_vectors(towers, version, users))
                user_ids += [user.user_id for user in users]
            progress.update(len(batch))
    return user_ids, np.concatenate(vectors)


async def _inputs(
    database: Database, corpus: Corpus, user_ids: list[str], history_length: int, now: int
) -> list[UserInputs]:
    histories = await read_histories(database, user_ids, history_length)
    inputs = (
        served_inputs(corpus, user_id, histories[user_id], now)
        for user_id in user_ids
        if user_id in histories
    )
    return [user for user in inputs if len(user.kinds)]


async def _active_users(database: Database, limit: int) -> list[str]:
    last = sa.func.max(interactions.c.seq)
    query = (
        sa.select(interactions.c.user_id).group_by(interactions.c.user_id).order_by(last.desc()).limit(limit)
    )
    # The whole log may take longer than one request's transaction is allowed to.
    async with database.engine.connect() as connection:
        return list((await connection.execute(query)).scalars())
