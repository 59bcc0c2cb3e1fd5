"""Tells the servers of a new plan, and waits for them."""

import logging

from keek_server.errors import KeekError
from keek_server.interactions.connection import open_redis
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.log import InteractionLog
from keek_server.releases.channel import PlanChannel
from keek_server.releases.fleet import Fleet
from keek_server.releases.plan import Plan
from keek_server.settings import Settings
from keek_server.storage.database import Database

logger = logging.getLogger(__name__)


async def bring_out(plan: Plan, database: Database, settings: Settings) -> None:
    """Announces a plan that is made already, and says how far the servers that live are with it.

    What fails here fails for those who wait alone: the plan holds.
    """
    fleet = Fleet(database, stale_s=settings.server_stale_s)
    try:
        if await fleet.living() and settings.redis_url is not None:
            await _announce(database, settings)
        rollout = await fleet.settled(plan, wait_s=settings.publish_converge_s)
    except KeekError as error:
        logger.warning("how far the servers are is not known: %s", error)
        return
    if not rollout.converged:
        late = ", ".join(f"{each.name} ({each.problem or 'not yet'})" for each in rollout.pending)
        logger.warning("not served yet by %s", late)
    elif rollout.servers:
        logger.info("all %d servers run it", len(rollout.servers))


async def _announce(database: Database, settings: Settings) -> None:
    try:
        keys = ProjectionKeys.of(settings.redis_prefix, (await InteractionLog(database).extent()).log_id)
        async with open_redis(settings) as redis:
            await PlanChannel(redis, keys, deadline_s=settings.sql_deadline_s).announce()
    except KeekError as error:
        logger.warning("not announced, servers find it by themselves: %s", error)
