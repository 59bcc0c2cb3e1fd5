"""The registry in SQL: which releases exist and which one is active."""

import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.errors import NotFoundError
from keek_server.releases.manifest import Manifest
from keek_server.storage.database import Database
from keek_server.storage.tables import activations, releases


class ReleaseRegistry:
    """Registers and activates releases. Activation is one row: it happened, or it did not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, manifest: Manifest) -> None:
        """Makes a release known; repeating it changes nothing."""
        row = {
            "release_id": manifest.release_id,
            "create_time_us": manifest.create_time_us,
            "manifest": manifest.model_dump(mode="json"),
        }
        async with self._database.write() as connection:
            await connection.execute(self._database.insert(releases).values(row).on_conflict_do_nothing())

    async def activate(self, release_id: str, reason: str) -> None:
        """Makes a registered release the active one.

        Raises:
            NotFoundError: When no such release is registered.
        """
        known = sa.select(releases.c.release_id).where(releases.c.release_id == release_id)
        row = {"release_id": release_id, "activate_time_us": now_us(), "reason": reason}
        async with self._database.write() as connection:
            if (await connection.execute(known)).first() is None:
                raise NotFoundError(f"no release {release_id!r} is registered")
            await connection.execute(activations.insert().values(row))

    async def active(self) -> str | None:
        """The active release's id; None before the first activation."""
        query = sa.select(activations.c.release_id).order_by(activations.c.seq.desc()).limit(1)
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none()
