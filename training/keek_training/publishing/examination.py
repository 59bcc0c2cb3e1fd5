"""Whether a release may serve: the gates before and after it is built, and the report of both."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from keek_server.clock import now_us
from keek_server.errors import SetupError
from keek_server.releases.manifest import Candidate, GateResult, TowerVersion
from keek_server.releases.release import Release
from keek_server.retrieval.milvus_store import Milvus
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import RANKER, USER_TOWER, VIDEO_TOWER, TowerContract
from keek_training.gates.evidence import Evidence
from keek_training.gates.measure import measure
from keek_training.gates.measured import Measured
from keek_training.gates.preflight import LiveTowers, preflight
from keek_training.gates.verdict import failures, refuse_unless_passed
from keek_training.publishing.kept import KeptRelease, ReleaseModels
from keek_training.publishing.repository import MODEL_FILE
from keek_training.publishing.source import TowerSource

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Examination:
    """One candidate before the gates."""

    source: TowerSource
    release_id: str
    """What it is, or would be, called."""
    live: KeptRelease | None
    settings: Settings
    sha256: Mapping[str, str]
    """Of the files that the gates see, by the model's name: nothing else may be copied afterwards."""
    forced_reason: str = ""
    milvus: Milvus | None = None
    """Where the live release may be searched."""
    results: list[GateResult] = field(default_factory=list)
    """Of all gates so far."""

    async def before_loading(self) -> None:
        """What the files show by themselves: nothing of them has reached the model repository yet.

        Raises:
            RefusedError: When a gate refuses them; a report is written then.
        """
        self.results += await asyncio.to_thread(preflight, self.source, self._live_towers(), self.settings)
        await self._judge(None)

    def candidate(self, version: int) -> Candidate:
        """What there is to say of a release that is not built: one that was refused is registered with it.

        Args:
            version: What its towers would have got.
        """
        entries = {
            tower: TowerVersion(
                version=version, sha256=self.sha256.get(tower.model, ""), size_bytes=_size(self.source, tower)
            )
            for tower in self.source.models
        }
        return Candidate(
            release_id=self.release_id,
            create_time_us=now_us(),
            user_tower=entries[USER_TOWER],
            video_tower=entries[VIDEO_TOWER],
            ranker=entries.get(RANKER),
            history_length=self.source.history_length,
            metrics=self.source.metrics,
            source=self.source.name,
            gates=tuple(self.results),
        )

    def check_copies(self, models: ReleaseModels) -> None:
        """
        Raises:
            SetupError: When a file is not the one that the gates saw.
        """
        for tower in self.source.models:
            if models.by_name[tower.model].sha256 != self.sha256.get(tower.model):
                raise SetupError(
                    f"{self.source.path(tower)} was changed while it was published: publish again"
                )

    async def before_serving(self, candidate: Measured, database: Database, towers: TowerClient) -> None:
        """What only Triton, the corpus, the log and the live release show.

        Raises:
            RefusedError: When a gate refuses it; the report is written in any case.
        """
        evidence = Evidence()
        live = await asyncio.to_thread(self._live_release)
        self.results += await measure(candidate, live, database, towers, self.settings, evidence)
        await self._judge(evidence, always=True)

    async def _judge(self, evidence: Evidence | None, *, always: bool = False) -> None:
        if always or failures(self.results):
            page = await asyncio.to_thread(self._report, evidence)
            logger.info("report of the gates: %s", page)
        refuse_unless_passed(self.results, self.forced_reason)

    def _report(self, evidence: Evidence | None) -> Path:
        # What plots takes a second to import, and much can end before.
        from keek_training.gates.report import write_report

        folder = self.settings.data_dir / "reports" / self.release_id
        folder.mkdir(parents=True, exist_ok=True)
        live_id = self.live.release_id if self.live else None
        return write_report(
            folder, self.release_id, self.source.name, self.results, live_id, self.forced_reason, evidence
        )

    def _live_towers(self) -> LiveTowers | None:
        if self.live is None:
            return None
        user, video = (
            self.settings.model_repository / tower.model / str(entry.version) / MODEL_FILE
            for tower, entry in ((USER_TOWER, self.live.user_tower), (VIDEO_TOWER, self.live.video_tower))
        )
        if not (user.is_file() and video.is_file()):
            return None
        return LiveTowers(user, video, self.live.history_length)

    def _live_release(self) -> Measured | None:
        if self.live is None:
            return None
        try:
            folder = self.settings.release_dir / self.live.release_id
            return Measured.of_release(Release.open(folder, milvus=self.milvus))
        except SetupError as error:
            logger.warning("nothing is compared with the live release: %s", error)
            return None


def _size(source: TowerSource, tower: TowerContract) -> int:
    """Bytes of a tower's file; 0 for what cannot be read."""
    try:
        return source.path(tower).stat().st_size
    except OSError:
        return 0
