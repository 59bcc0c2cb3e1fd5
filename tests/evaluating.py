"""Small data sets and cases for the tests of evaluation."""

from collections.abc import Sequence

import pyarrow as pa

from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.assemble import assemble, bare_videos, interaction_table
from keek_training.datasets.dataset import Dataset
from keek_training.evaluation.targets import Targets

SECOND_US = 1_000_000

Event = tuple[str, str, InteractionKind]


def dataset_of(events: Sequence[Event], videos: Sequence[str], *, same_time: bool = False) -> Dataset:
    """Events in their order, a second after one another, from second 1 on."""
    users, names, kinds = zip(*events, strict=True)
    times = pa.array([SECOND_US * (1 if same_time else place) for place in range(1, len(events) + 1)])
    numbers = pa.array([int(kind) for kind in kinds], pa.int8()).to_numpy()
    rows = interaction_table(pa.array(users), pa.array(names), numbers, times)
    return assemble("small", bare_videos(pa.array(videos)), rows)


def targets_of(pairs: Sequence[tuple[str, str]]) -> Targets:
    """Targets without times."""
    users, videos = zip(*pairs, strict=True)
    return Targets(pa.array(users), pa.array(videos))
