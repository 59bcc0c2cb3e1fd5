"""Reports on request: made by a process of their own, since all that was shown and done is read for them."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

from keek_server.errors import KeekError, NotFoundError, UnavailableError
from keek_server.metrics_endpoint import WORKERS_FOLDER
from keek_server.videos.slots import Slots

logger = logging.getLogger(__name__)

_DEADLINE_S: Final = 300.0
_ANSWER_S: Final = 0.5
"""Left of a caller's deadline, so that the answer still arrives."""
NOT_FOUND: Final = 3
"""What the command exits with for an experiment that does not exist."""
_TOLD: Final = 2000
"""Characters of what a process said that failed."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of an experiment's arms."""

    figures: dict[str, Any]
    """All of it; docs/experiments.md names them."""
    text: str
    """A table."""
    html: str
    """A page that needs nothing else."""


class ExperimentReports:
    """Runs `keek-server experiments report` for those who ask."""

    def __init__(self, database_url: str, slots: Slots) -> None:
        """
        Args:
            database_url: Where the log is.
            slots: How many at the same time.
        """
        self._database_url = database_url
        self._slots = slots

    async def make(
        self, experiment_id: str, *, window_hours: float, deadline_s: float | None = None
    ) -> Report:
        """The report of now.

        Args:
            experiment_id: Which experiment.
            window_hours: How long after a feed an interaction may come that belongs to it.
            deadline_s: When to give up, 300 s at the latest.

        Raises:
            NotFoundError: When there is none of that id.
            OverloadedError: When others are being made.
            UnavailableError: When it is not made in time.
            KeekError: When it cannot be made; the log says why.
        """
        limit_s = _DEADLINE_S if deadline_s is None else min(_DEADLINE_S, max(0.0, deadline_s - _ANSWER_S))
        with self._slots.take():
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "keek_server", "experiments", "report", experiment_id),
                *("--window-hours", str(window_hours), "--whole"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environment(),
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(limit_s):
                    out, said = await process.communicate()
            except TimeoutError as error:
                raise UnavailableError(f"the report was not made within {limit_s:.0f} s") from error
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        if process.returncode == NOT_FOUND:
            raise NotFoundError(f"there is no experiment {experiment_id}")
        if process.returncode:
            logger.error("report on %s: %s", experiment_id, said.decode(errors="replace").strip()[-_TOLD:])
            raise KeekError("the report cannot be made: the server's log says why")
        return Report(**json.loads(out))

    def _environment(self) -> dict[str, str]:
        own = {**os.environ, "KEEK_DATABASE_URL": self._database_url}
        # Its metrics would be added to those of the workers, and stay there.
        own.pop(WORKERS_FOLDER, None)
        return own
