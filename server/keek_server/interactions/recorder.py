"""Recording feedback: known videos alone, acknowledged after the commit."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from keek_server import metrics
from keek_server.errors import NotFoundError
from keek_server.interactions.append import Interaction
from keek_server.interactions.heads import TrendingHead
from keek_server.interactions.log import Appended, InteractionLog
from keek_server.interactions.projector import Projector
from keek_server.videos.catalogue import Catalogue

_REJECTIONS_NAMED = 100


@dataclass(slots=True)
class Recorded:
    """What became of many interactions."""

    created: int = 0
    duplicate: int = 0
    rejected: int = 0
    rejections: list[tuple[str, str]] = field(default_factory=list)
    """(event id, reason) of the first of them."""

    def reject(self, interaction: Interaction) -> None:
        """Counts one whose video is not known."""
        self.rejected += 1
        if len(self.rejections) < _REJECTIONS_NAMED:
            self.rejections.append((str(UUID(interaction.event_id)), f"no video {interaction.video_id!r}"))


class Recorder:
    """Checks, appends to the log, and wakes the projector."""

    def __init__(
        self,
        log: InteractionLog,
        catalogue: Catalogue,
        projector: Projector,
        head: TrendingHead,
        *,
        wait_for_feed_s: float,
    ) -> None:
        self._log = log
        self._catalogue = catalogue
        self._projector = projector
        self._head = head
        self._wait_for_feed_s = wait_for_feed_s

    async def record(self, interaction: Interaction, *, wait_for_feed: bool) -> tuple[bool, bool]:
        """Records one interaction durably.

        Returns:
            Whether it was new, and whether the next feed is known to reflect it already.

        Raises:
            NotFoundError: When its video is not known; nothing is stored.
            UnavailableError: When the database is down.
        """
        if not await self._tag([interaction]):
            raise NotFoundError(f"no video {interaction.video_id!r}")
        appended = await self._append([interaction])
        in_feed = wait_for_feed and await self._projector.wait_for(appended.seq, self._wait_for_feed_s)
        if in_feed:
            self._head.expire()
        return appended.created[0], in_feed

    async def record_many(self, interactions: Sequence[Interaction], result: Recorded) -> None:
        """Records those whose videos are known, in one transaction, and counts into `result`."""
        known = await self._tag(interactions)
        for interaction in interactions:
            if interaction.video_id not in known:
                result.reject(interaction)
        accepted = [interaction for interaction in interactions if interaction.video_id in known]
        if not accepted:
            return
        created = sum((await self._append(accepted)).created)
        result.created += created
        result.duplicate += len(accepted) - created

    async def _tag(self, interactions: Sequence[Interaction]) -> Collection[str]:
        """Gives each interaction its video's tags; returns the videos that are known."""
        briefs = await self._catalogue.briefs(interaction.video_id for interaction in interactions)
        for interaction in interactions:
            if (brief := briefs.get(interaction.video_id)) is not None:
                interaction.tags = brief.tags
        return briefs.keys()

    async def _append(self, interactions: Sequence[Interaction]) -> Appended:
        appended = await self._log.append(interactions)
        self._projector.notify()
        metrics.log_seq.set(appended.seq)
        return appended
