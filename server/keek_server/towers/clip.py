"""Clip vectors of frames and texts, from the CLIP of one release. Needs neither torch nor open-clip."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from keek_server.batching import Batcher
from keek_server.errors import SetupError
from keek_server.towers.client import TowerClient
from keek_server.towers.clip_record import ClipRecord
from keek_server.towers.clip_tokens import Tokenizer
from keek_server.towers.contract import CLIP_DIMENSION, CLIP_IMAGE, CLIP_TEXT
from keek_server.towers.features import Float32Array, Int32Array
from keek_server.videos.decoding.types import FrameShape

Frames = npt.NDArray[np.uint8]
"""uint8 [n, 3, size, size]: RGB, resized and cropped as the `ClipRecord` says."""

_FRAMES_AT_ONCE: Final = 16
"""Two uploads share a batch. On a CPU, a larger one has the same throughput, and who comes next waits
for longer."""
_MAX_WAITING_FRAMES: Final = 256
"""Batches; 300 MB of frames."""
_MAX_WAITING_TEXTS: Final = 1024


class ClipImages:
    """Asks one version of the image encoder; frames of several callers share batches."""

    def __init__(self, towers: TowerClient, version: int, *, image_size: int, deadline_s: float) -> None:
        """
        Args:
            towers: The connection to Triton.
            version: The version that must answer.
            image_size: Of the frames; one of another size would fail those it shares a batch with.
            deadline_s: Of one batch, and for how long frames may wait until theirs begins.
        """
        self._towers = towers
        self._version = version
        self._shape = (3, image_size, image_size)
        self._deadline_s = deadline_s
        self._batcher: Batcher[Frames, Float32Array] = Batcher(
            self._run,
            max_weight=_FRAMES_AT_ONCE,
            max_waiting=_MAX_WAITING_FRAMES,
            max_delay_s=deadline_s,
            weigh=len,
        )

    async def vector(self, frames: Frames) -> Float32Array:
        """What a video or an image looks like: the mean over its frames' vectors, L2-normalised.

        Args:
            frames: At least one.

        Returns:
            float32 [CLIP_DIMENSION].

        Raises:
            ValueError: When there is no frame, or they are not of the size.
            UnavailableError: When Triton does not answer in time, or too many frames wait.
        """
        if not len(frames) or frames.shape[1:] != self._shape:
            raise ValueError(f"frames of shape {frames.shape}, expected n times {self._shape}")
        parts = [frames[start : start + _FRAMES_AT_ONCE] for start in range(0, len(frames), _FRAMES_AT_ONCE)]
        total: Float32Array = np.sum(await asyncio.gather(*map(self._batcher.submit, parts)), axis=0)
        return total / np.float32(max(float(np.linalg.norm(total)), 1e-12))

    async def _run(self, batch: list[Frames]) -> Sequence[Float32Array]:
        """The sum of each item's vectors."""
        pixels = batch[0] if len(batch) == 1 else np.concatenate(batch)
        vectors = await self._towers.vectors(
            CLIP_IMAGE, self._version, {"pixels": pixels}, deadline_s=self._deadline_s
        )
        ends = np.cumsum([len(frames) for frames in batch])
        return [rows.sum(axis=0) for rows in np.split(vectors, ends[:-1])]


class ClipTexts:
    """Asks one version of the text encoder; texts that wait share a batch."""

    def __init__(self, towers: TowerClient, version: int, tokenizer: Tokenizer, *, deadline_s: float) -> None:
        """
        Args:
            towers: The connection to Triton.
            version: The version that must answer.
            tokenizer: Of the same CLIP.
            deadline_s: Of one batch, and for how long a text may wait until its own begins.
        """
        self._towers = towers
        self._version = version
        self._tokenizer = tokenizer
        self._deadline_s = deadline_s
        self._batcher: Batcher[Int32Array, Float32Array] = Batcher(
            self._run,
            max_weight=CLIP_TEXT.max_batch_size,
            max_waiting=_MAX_WAITING_TEXTS,
            max_delay_s=deadline_s,
        )

    async def vector(self, text: str) -> Float32Array:
        """What a text means, where `ClipImages` puts pictures of it: float32 [CLIP_DIMENSION], L2-normalised.

        Raises:
            UnavailableError: When Triton does not answer in time, or too many texts wait.
        """
        return await self._batcher.submit(self._tokenizer.tokens(text))

    async def _run(self, batch: list[Int32Array]) -> Sequence[Float32Array]:
        tokens = self._tokenizer.padded(batch)
        vectors = await self._towers.vectors(
            CLIP_TEXT, self._version, {"tokens": tokens}, deadline_s=self._deadline_s
        )
        return list(vectors)


@dataclass(frozen=True, slots=True)
class Clip:
    """The CLIP of one release."""

    record: ClipRecord
    images: ClipImages
    texts: ClipTexts

    @classmethod
    def open(
        cls, folder: Path, towers: TowerClient, *, image_version: int, text_version: int, deadline_s: float
    ) -> "Clip":
        """Reads what lies in a release's folder; takes a tenth of a second, without a pause.

        Raises:
            SetupError: When it cannot be read.
        """
        record = ClipRecord.load(folder)
        texts = ClipTexts(towers, text_version, Tokenizer.open(folder, record), deadline_s=deadline_s)
        images = ClipImages(towers, image_version, image_size=record.image_size, deadline_s=deadline_s)
        return cls(record, images, texts)

    @property
    def frame_shape(self) -> FrameShape:
        """What frames have to be made into."""
        return self.record.frame_shape

    async def check(self) -> None:
        """Asks both encoders once: shows that Triton has the versions, and warms them up.

        Raises:
            SetupError: When a vector is not what the contract says.
            UnavailableError: When Triton does not answer.
        """
        size = self.record.image_size
        frame = np.zeros((1, 3, size, size), np.uint8)
        for vector in (await self.images.vector(frame), await self.texts.vector("")):
            if vector.shape != (CLIP_DIMENSION,):
                raise SetupError(f"CLIP gave a vector of shape {vector.shape}, not ({CLIP_DIMENSION},)")
