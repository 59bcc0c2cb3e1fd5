"""Which feed caused an interaction: the last one before it that showed the user this video."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.logs import BoolArray, Exposures, Int64Array, Interactions

WINDOW_HOURS: Final = 24.0
"""How long after a feed an interaction may come that belongs to it, where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Where each of k interactions belongs; -1 where no feed caused it."""

    slots: Int64Array
    """[k]: the slot, counted over all feeds."""
    feeds: Int64Array
    """[k]: the feed of that slot."""
    positions: Int64Array
    """[k]: the slot's place in its feed, from 0."""


def attribute(exposures: Exposures, interactions: Interactions, window_us: int) -> Attribution:
    """Last touch: an interaction belongs to the user's latest slot with this video, if it was served at most
    `window_us` before; at the same moment counts.

    Where one feed has a video twice, or two feeds of one moment have it, the later in the log gets it.

    Raises:
        InvalidArgumentError: When the window is negative.
    """
    if window_us < 0:
        raise InvalidArgumentError.of("window_us", "must not be negative")
    feeds, slot_count = exposures.feeds, len(exposures.videos)
    users = np.concatenate([exposures.users[feeds], interactions.users])
    videos = np.concatenate([exposures.videos, interactions.videos])
    times = np.concatenate([exposures.times_us[feeds], interactions.times_us])
    # By user and video, then by time. The sort is stable: of one moment, slots come before interactions.
    order = np.lexsort((times, videos, users))
    is_slot = order < slot_count
    # The place in the order of the last slot up to here.
    last = np.maximum.accumulate(np.where(is_slot, np.arange(len(order)), -1))
    asked = ~is_slot
    mine, before = order[asked], order[last[asked]]
    fits = (
        (last[asked] >= 0)
        & (users[before] == users[mine])
        & (videos[before] == videos[mine])
        & (times[mine] - times[before] <= window_us)
    )
    slots = np.full(len(interactions), -1, np.int64)
    slots[mine[fits] - slot_count] = before[fits]
    known = slots >= 0
    return Attribution(slots, _at(feeds, slots, known), _at(exposures.positions, slots, known))


def _at(values: Int64Array, slots: Int64Array, known: BoolArray) -> Int64Array:
    found = np.full(len(slots), -1, np.int64)
    found[known] = values[slots[known]]
    return found
