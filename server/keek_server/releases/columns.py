"""What filters read of videos: one encoding for releases and for their fresh parts."""

from collections.abc import Sequence

import numpy as np

from keek_server.retrieval.fresh import VECTORS, Columns
from keek_server.retrieval.ids import hash_all
from keek_server.retrieval.index import Vectors
from keek_server.towers.features import MAX_TAGS, pad_tags
from keek_server.videos.locales import language_hashes, region_hashes


def video_columns(
    vectors: Vectors,
    *,
    owner_ids: Sequence[str],
    tags: Sequence[Sequence[str]],
    durations_s: Sequence[float],
    create_times_us: Sequence[int],
    languages: Sequence[str],
    regions: Sequence[str],
) -> Columns:
    """The VIDEO_COLUMNS of n videos: their vectors, float32 [n, DIMENSION], and n values of each kind."""
    hashes = pad_tags(tags)
    return {
        VECTORS: vectors,
        "owners": hash_all(owner_ids),
        "durations_s": np.array(durations_s, np.float32),
        "create_times_us": np.array(create_times_us, np.int64),
        "tags": np.pad(hashes, ((0, 0), (0, MAX_TAGS - hashes.shape[1]))),
        "languages": language_hashes(languages),
        "regions": region_hashes(regions),
    }
