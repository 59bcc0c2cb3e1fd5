"""What a row of the log does to the projection, as `project.lua` reads it."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from keek_server.interactions.kinds import TrendingScope
from keek_server.interactions.rows import LoggedInteraction
from keek_server.settings import Settings

_COUNTED_PER_SEEN = 4
"""Interactions remembered as counted, per video remembered as seen: about one a kind."""


class RowEncoder:
    """Turns rows of the log into the arguments of one Lua call."""

    def __init__(self, settings: Settings) -> None:
        self._half_life_us = settings.trending_half_life_s * 1e6
        self._rising_half_life_us = settings.rising_half_life_s * 1e6
        self._window_us = int(settings.trending_window_s * 1e6)
        self._scopes = settings.trending_scopes
        self._log2_weights = {
            int(kind): math.log2(weight)
            for kind, weight in settings.interaction_weights.items()
            if weight > 0
        }
        self.limits = json.dumps(
            [
                settings.trending_limit,
                settings.trending_scope_limit,
                settings.history_limit,
                settings.seen_limit,
                _COUNTED_PER_SEEN * settings.seen_limit,
            ]
        )
        """Limits in the order that `project.lua` reads them."""
        self.fingerprint = json.dumps(
            [
                self.limits,
                self._half_life_us,
                self._rising_half_life_us,
                self._window_us,
                sorted(self._scopes),
                sorted(self._log2_weights.items()),
            ]
        )
        """Differs when the same log would give another projection."""

    def encode(self, rows: Sequence[LoggedInteraction]) -> bytes:
        """The rows as MessagePack, a third of JSON's cost on both sides; floats stay exact."""
        packed: bytes = msgpack.packb([self._row(row) for row in rows])
        return packed

    def _row(self, row: LoggedInteraction) -> list[Any]:
        time_us, kind = row.event_time_us, int(row.kind)
        encoded: list[Any] = [row.seq, row.user_id, row.video_id, f"{kind}:{time_us}:{row.video_id}"]
        log2_weight = self._log2_weights.get(kind)
        if log2_weight is not None:
            # Windows are aligned to the epoch, so that an event's window is its own matter.
            window = time_us // self._window_us
            encoded += (
                window,
                f"{window}:{kind}:{row.video_id}",
                time_us / self._half_life_us + log2_weight,
                time_us / self._rising_half_life_us + log2_weight,
            )
            if self._scopes:
                encoded.append(list(self._scopes_of(row)))
        return encoded

    def _scopes_of(self, row: LoggedInteraction) -> Iterator[str]:
        if TrendingScope.REGION in self._scopes and row.region:
            yield TrendingScope.REGION.of(row.region)
        if TrendingScope.TAG in self._scopes:
            # A tag that stands twice still counts once.
            for tag in dict.fromkeys(row.tags):
                yield TrendingScope.TAG.of(tag)
