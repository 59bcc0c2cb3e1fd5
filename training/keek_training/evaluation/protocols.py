"""The public data sets with the splits that results on them are told for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from keek_server.errors import SetupError
from keek_training.datasets import kuairand, movielens, tiktok
from keek_training.datasets.parquet import read_parquet
from keek_training.datasets.parse import parse_flags, parse_ids, parse_times
from keek_training.datasets.rows import Rows
from keek_training.evaluation.splits import Split, Splitter, drawn_out, last_part, leave_last_out
from keek_training.evaluation.targets import Targets

_VALIDATED: Final = 1 / 3
"""Share of TikTok's users with a target in `val`, and so of those that a validation draws."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one data set is measured."""

    split: Split
    tuning: Splitter
    """Makes the validation part out of the split's training: nothing is chosen by the targets."""


def kuairand_pure(folder: Path) -> Protocol:
    """*time*: everything up to 24 April 2022 is trained on; the targets are what users watched long or liked
    in the six days after. Validation holds out the last fifth of the training.

    Raises:
        SetupError: When the folder lacks the Parquet layout.
    """
    training = kuairand.read(folder)
    files = sorted(folder.glob("val_*.parquet"))
    if not files:
        raise SetupError(f"{folder} has no val_*.parquet, whose positives are the targets")
    rows = Rows(read_parquet(files[0], ("user_id", "video_id", "time_ms", "is_positive")))
    user_ids, video_ids = parse_ids(rows, "user_id"), parse_ids(rows, "video_id")
    times, positive = parse_times(rows, "time_ms"), parse_flags(rows, "is_positive")
    wanted = pa.array(rows.good & positive)
    times_us = times.filter(wanted).to_numpy(zero_copy_only=False).astype(np.int64)
    targets = Targets(user_ids.filter(wanted), video_ids.filter(wanted), times_us, rows.problems())
    return Protocol(Split("time", training, targets), last_part(1 / 5))


def ml_1m(folder: Path) -> Protocol:
    """*leave-last-out*: the last movie of each user is the target, the one before that is the validation's.

    Raises:
        SetupError: When the folder holds no MovieLens.
    """
    return Protocol(leave_last_out(movielens.read(folder)), leave_last_out)


def tiktok_given(folder: Path) -> Protocol:
    """*given*: `trn` and `val` as the file has them. Validation draws one video each of a third of the users.

    Raises:
        SetupError: When the file is missing or of another layout.
    """
    users, videos = (pa.array(row).cast(pa.string()) for row in tiktok.read_pairs(folder, "val"))
    split = Split("given", tiktok.read(folder), Targets(users, videos))
    return Protocol(split, drawn_out(_VALIDATED))


PROTOCOLS: Final[Mapping[str, Callable[[Path], Protocol]]] = {
    "kuairand-pure": kuairand_pure,
    "ml-1m": ml_1m,
    "tiktok": tiktok_given,
}
"""By the name of the data set, and of the folder below KEEK_TEST_DATA that holds it."""


def some_users(protocol: Protocol, count: int) -> Protocol:
    """The same with the first users of the targets, and what they did, alone: to try things out.

    Users are new where they are new in the whole; more videos are.
    """
    own = protocol.split
    chosen = pc.unique(own.targets.user_ids)[:count]
    kept = pc.is_in(own.training.interactions["user_id"], value_set=chosen)
    training = replace(own.training, interactions=own.training.interactions.filter(kept).combine_chunks())
    asked = pc.is_in(own.targets.user_ids, value_set=chosen)
    times_us = own.targets.times_us
    targets = Targets(
        own.targets.user_ids.filter(asked),
        own.targets.video_ids.filter(asked),
        None if times_us is None else times_us[asked.to_numpy(zero_copy_only=False)],
    )
    return replace(protocol, split=Split(own.name, training, targets))
