"""TikTok as the multimodal benchmarks share it: who liked which video, and vectors of what is seen and heard.

One file, `tiktok_trn_val.npz`: `trn` and `val` (whole numbers, 2 x n: users, videos), and a row a video of
`visual` and `acoustic`. There are no times and the order of rows means nothing, so an order is drawn: without
that, a model of sequences would learn how the file was sorted. Every interaction is a like at one moment.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.contract import CLIP_DIMENSION
from keek_server.towers.features import Float16Array
from keek_training.datasets.assemble import assemble, bare_videos, interaction_table
from keek_training.datasets.dataset import Dataset

FILE: Final = "tiktok_trn_val.npz"

_PARTS = ("trn", "val")
_CONTENT = ("visual", "acoustic")
_LENGTHS = (1.0, 0.5)
_SEED: Final = 1

Pairs = npt.NDArray[np.int64]


def read(path: Path, part: str = "train") -> Dataset:
    """Reads a folder; the videos are all that have a vector.

    What is seen, of length 1, and what is heard, of length 1/2, stand one behind the other where a video's
    clip vector does, filled up with zeros: the video tower reads them there. What is heard differs more from
    video to video and says less of who likes it.

    Args:
        path: The folder.
        part: `train`: what is in `trn`. `all`: what is in `val`, too.

    Raises:
        SetupError: When the file is missing, or is not of this layout.
    """
    file = path / FILE
    content = [_array(file, name, "f", 2) for name in _CONTENT]
    if len(content[0]) != len(content[1]) or sum(own.shape[1] for own in content) > CLIP_DIMENSION:
        raise SetupError(
            f"{file}: visual and acoustic are no vectors of one set of videos, together at most 512 long"
        )
    count = len(content[0])
    names = _PARTS if part == "all" else _PARTS[:1]
    pairs = np.concatenate([read_pairs(path, name) for name in names], axis=1)
    if pairs.size and int(pairs[1].max()) >= count:
        raise SetupError(
            f"{file}: {' or '.join(names)} names the video {int(pairs[1].max())}, of which there is no vector"
        )
    users, videos = np.random.default_rng(_SEED).permutation(pairs, axis=1)
    ids = pa.array(np.arange(count)).cast(pa.string())
    dataset = assemble("tiktok", bare_videos(ids), _likes(users, videos))
    order = np.array(dataset.videos["video_id"].to_pylist()).astype(np.int64)
    return replace(dataset, clip_vectors=_joined(content)[order])


def read_pairs(path: Path, part: str) -> Pairs:
    """The users and videos of `trn` or `val`: int64 [2, n], in the file's order.

    Raises:
        SetupError: When the file is missing, or is not of this layout.
    """
    assert part in _PARTS
    pairs = _array(path / FILE, part, "iu", 2).astype(np.int64)
    if len(pairs) != len(_PARTS) or (pairs < 0).any():
        raise SetupError(f"{path / FILE}: {part} is {pairs.shape}, not a row of users and one of videos")
    return pairs


def _array(file: Path, name: str, kinds: str, dimensions: int) -> npt.NDArray[np.generic]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            array: npt.NDArray[np.generic] = arrays[name]
    except KeyError:
        raise SetupError(f"{file} lacks the array {name}") from None
    except (OSError, ValueError, BadZipFile) as error:
        raise SetupError(f"{file} is not a readable .npz file: {error}") from error
    if array.ndim != dimensions or array.dtype.kind not in kinds:
        raise SetupError(f"{file}: {name} is {array.dtype} {list(array.shape)}")
    return array


def _likes(users: Pairs, videos: Pairs) -> pa.Table:
    return interaction_table(
        pa.array(users).cast(pa.string()),
        pa.array(videos).cast(pa.string()),
        np.full(len(users), int(InteractionKind.LIKE), np.int8),
        pa.array(np.zeros(len(users), np.int64)),
    )


def _joined(content: list[npt.NDArray[np.generic]]) -> Float16Array:
    """float16 [videos, CLIP_DIMENSION]."""
    parts = [own.astype(np.float32) for own in content]
    lengths = zip(parts, _LENGTHS, strict=True)
    parts = [
        length * own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6) for own, length in lengths
    ]
    joined = np.concatenate(parts, axis=1)
    return np.pad(joined, ((0, 0), (0, CLIP_DIMENSION - joined.shape[1]))).astype(np.float16)
