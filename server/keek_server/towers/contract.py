"""The contract of the towers and the ranker: tensor names, dtypes and shapes, as in each `config.pbtxt`.

Shapes leave the batch dimension out; -1 is free. Whatever is exported is checked
against this, whatever is served is asked for by these names.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

DIMENSION: Final = 64
"""Length of user and video vectors; affinity is their dot product."""

CLIP_DIMENSION: Final = 512
"""Length of the clip vector that the video tower reads; all zero when a video has none."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a tower."""

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TowerContract:
    """What a tower must look like from outside."""

    model: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    max_batch_size: int


USER_TOWER: Final = TowerContract(
    model="user_tower",
    inputs=(
        # Two 31-bit hashes of the user's id (features.hash_ids); zeros when unknown.
        TensorSpec("user", np.int32, (2,)),
        # The history, newest last, padded on the left with zeros: the videos' vectors of the
        # same release, what was done (InteractionKind; 0 pads), and how long ago, in seconds.
        TensorSpec("history_vectors", np.float32, (-1, DIMENSION)),
        TensorSpec("history_kinds", np.int32, (-1,)),
        TensorSpec("history_ages_s", np.float32, (-1,)),
    ),
    output=TensorSpec("user_vector", np.float32, (DIMENSION,)),
    max_batch_size=256,
)

VIDEO_TOWER: Final = TowerContract(
    model="video_tower",
    inputs=(
        TensorSpec("video", np.int32, (2,)),
        TensorSpec("owner", np.int32, (2,)),
        # One 31-bit hash a tag, padded with zeros.
        TensorSpec("tags", np.int32, (-1,)),
        # Seconds; 0 when unknown.
        TensorSpec("duration_s", np.float32, (1,)),
        TensorSpec("clip_vector", np.float16, (CLIP_DIMENSION,)),
    ),
    output=TensorSpec("video_vector", np.float32, (DIMENSION,)),
    max_batch_size=1024,
)

TOWERS: Final = (USER_TOWER, VIDEO_TOWER)

CLIP_IMAGE: Final = TowerContract(
    model="clip_image",
    # RGB, resized and cropped as the release's `ClipRecord` says: bytes, a quarter of what floats
    # would take on the way. Scaling by 255, mean and std are inside the model.
    inputs=(TensorSpec("pixels", np.uint8, (3, -1, -1)),),
    output=TensorSpec("clip_vector", np.float32, (CLIP_DIMENSION,)),
    max_batch_size=32,
)

CLIP_TEXT: Final = TowerContract(
    model="clip_text",
    # Token ids with start and end, as `clip_tokens.Tokenizer` makes them, padded to the longest.
    inputs=(TensorSpec("tokens", np.int32, (-1,)),),
    output=TensorSpec("clip_vector", np.float32, (CLIP_DIMENSION,)),
    max_batch_size=32,
)

CLIP_ENCODERS: Final = (CLIP_IMAGE, CLIP_TEXT)
"""CLIP's two encoders; their vectors are L2-normalised, of one space."""

RANKING_FEATURES: Final = (
    "affinity",
    "popularity",
    "age",
    "duration",
    "owner_share",
    "mean_similarity",
    "max_similarity",
)
"""What the ranker reads of a candidate beside its vector; see `ranking.ranking_features`."""

RANKER: Final = TowerContract(
    model="ranker",
    # A row is a page: its user, and the candidates, padded behind with zeros.
    inputs=(
        TensorSpec("user_vector", np.float32, (DIMENSION,)),
        TensorSpec("video_vectors", np.float32, (-1, DIMENSION)),
        TensorSpec("features", np.float32, (-1, len(RANKING_FEATURES))),
        # 1 where a candidate is, 0 where none is.
        TensorSpec("mask", np.float32, (-1,)),
    ),
    # One a candidate, the better the higher; they are compared within one page alone.
    output=TensorSpec("scores", np.float32, (-1,)),
    max_batch_size=64,
)

MODELS: Final = (*TOWERS, *CLIP_ENCODERS, RANKER)
"""All that a release may be made of."""
