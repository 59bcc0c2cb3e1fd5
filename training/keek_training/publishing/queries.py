"""Real user vectors, to measure an index's recall with."""

import numpy as np
import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.errors import SetupError
from keek_server.feed.history import history_inputs
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import HistoryEntry
from keek_server.releases.release import Corpus
from keek_server.retrieval.index import Vectors
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import USER_TOWER
from keek_server.towers.users import user_batch

_USERS = USER_TOWER.max_batch_size
_DEADLINE_S = 60.0


async def sample_user_vectors(
    database: Database, towers: TowerClient, version: int, corpus: Corpus, history_length: int
) -> Vectors:
    """Vectors of the users who were active last, as the server would ask for them.

    Returns:
        float32 [at most 256, DIMENSION].

    Raises:
        SetupError: When nobody has interacted with any video of the corpus.
    """
    log = InteractionLog(database)
    now = now_us()
    users = []
    for user_id in await _active_users(database):
        rows = await log.history(user_id, history_length)
        history = [HistoryEntry(row.video_id, row.kind, row.event_time_us) for row in rows]
        inputs = history_inputs(corpus, user_id, history, now)
        if len(inputs.kinds):
            users.append(inputs)
    if not users:
        raise SetupError("no interactions with videos of the catalogue: import interactions first")
    vectors = await towers.vectors(USER_TOWER, version, user_batch(users), deadline_s=_DEADLINE_S)
    return np.ascontiguousarray(vectors)


async def _active_users(database: Database) -> list[str]:
    last = sa.func.max(interactions.c.seq)
    query = (
        sa.select(interactions.c.user_id).group_by(interactions.c.user_id).order_by(last.desc()).limit(_USERS)
    )
    async with database.engine.connect() as connection:
        return list((await connection.execute(query)).scalars())
