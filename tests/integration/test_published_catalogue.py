"""What training and a release take from the catalogue: what exists, in no more memory than it needs."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from projecting import SKIP, event

from keek_server.interactions.log import InteractionLog
from keek_server.storage.database import Database
from keek_server.towers.contract import CLIP_DIMENSION, DIMENSION
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.filters import VideoFilter
from keek_server.videos.video import ClipVector, Video
from keek_training.datasets.store import load_dataset, load_videos
from keek_training.publishing import catalogue as module
from keek_training.publishing.catalogue import read_catalogue
from keek_training.publishing.indexes import build_corpus

PAGES, ROWS = 4, 40_000
"""Pages of 40 MB, as they are of 50,000 videos: the allocator gives such back when they are freed."""


def clip(seed: int, clip_model: str) -> ClipVector:
    vector = np.random.default_rng(seed).normal(size=CLIP_DIMENSION)
    return ClipVector(clip_model, vector.astype("<f2").tobytes())


def video(number: int) -> Video:
    plain = Video(f"v{number:02d}", f"o{number}", ["cats"], float(number), "", 1_700_000_000_000_000 + number)
    return replace(plain, language="pt-BR" if number % 2 else "", region="BR" if number % 3 else "")


async def test_a_release_is_built_from_what_exists_with_the_vectors_that_it_reads(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several pages, one of them without a vector.
    monkeypatch.setattr(module, "_ROWS_A_PAGE", 3)
    vectors = {f"v{n:02d}": clip(n, "a@1" if n % 2 else "b@1") for n in (0, 1, 6, 7, 9)}
    store = Catalogue(database)
    await store.put([video(n) for n in range(10)], vectors)
    await store.delete("v09", "")
    log = InteractionLog(database)
    await log.append([event("u1", "v01"), event("u2", "v01"), event("u1", "v02"), event("u1", "v03", SKIP)])

    catalogue = await read_catalogue(database, lambda clip_model: clip_model == "a@1")
    assert catalogue.video_ids == [f"v{n:02d}" for n in range(9)]
    assert catalogue.durations_s == [float(n) for n in range(9)]
    assert catalogue.languages == ["", "pt-BR"] * 4 + [""]
    assert catalogue.regions == ["", "BR", "BR"] * 3
    corpus = build_corpus(catalogue, np.zeros((9, DIMENSION), np.float32))
    assert np.flatnonzero(VideoFilter(languages=["pt"]).mask(corpus.columns)).tolist() == [1, 3, 5, 7]
    assert np.flatnonzero(VideoFilter(regions=["br"]).mask(corpus.columns)).tolist() == [1, 2, 4, 5, 7, 8]
    assert catalogue.counts.tolist() == [0, 2, 1] + [0] * 6
    assert np.flatnonzero(catalogue.has_clip).tolist() == [1, 7]
    assert catalogue.clip_vectors.shape == (9, CLIP_DIMENSION)
    for row, own in enumerate(catalogue.clip_vectors):
        expected = np.frombuffer(vectors[f"v{row:02d}"].content, "<f2") if row in (1, 7) else 0
        np.testing.assert_array_equal(own, expected)


async def test_an_empty_catalogue_has_no_rows(database: Database) -> None:
    catalogue = await read_catalogue(database)
    assert len(catalogue) == 0
    assert catalogue.clip_vectors.shape == (0, CLIP_DIMENSION)
    assert catalogue.has_clip.shape == (0,)


# In a process of its own: the memory of this one changes with the servers that run in it.
JOINING = """
import sys
from collections import deque
from pathlib import Path
import numpy as np
from keek_training.publishing import catalogue

ROWS, PAGES, WIDTH = map(int, sys.argv[1:4])
WITH = sys.argv[4] == "True"

def resident(name):
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name))
    return int(line.split()[1]) * 1024

def page():
    return np.full((ROWS if WITH else 0, WIDTH), 1, np.float16), np.full(ROWS, WITH)

pages = deque(page() for _ in range(PAGES))
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the most is measured anew
vectors, has_clip = catalogue._joined(pages)
most = resident("VmHWM") - before
assert vectors.shape == (PAGES * ROWS, WIDTH)
assert has_clip.all() == WITH and vectors[-1].all() == WITH
print(most)
"""


@pytest.mark.parametrize("with_vectors", [True, False])
def test_joining_the_pages_takes_one_page_more_than_the_vectors_themselves(*, with_vectors: bool) -> None:
    arguments = [str(ROWS), str(PAGES), str(CLIP_DIMENSION), str(with_vectors)]
    done = subprocess.run(
        [sys.executable, "-c", JOINING, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    a_page = ROWS * CLIP_DIMENSION * 2
    assert int(done.stdout) < 1.5 * a_page


async def test_training_does_not_see_what_was_deleted(database: Database) -> None:
    store = Catalogue(database)
    await store.put([video(n) for n in range(3)])
    await InteractionLog(database).append([event("u1", "v00"), event("u1", "v01")])
    await store.delete("v01", "")
    videos = await load_videos(database)
    assert videos["video_id"].to_pylist() == ["v00", "v02"]
    assert (videos["language"].to_pylist(), videos["region"].to_pylist()) == (["", ""], ["", "BR"])
    assert (await load_dataset(database)).videos["video_id"].to_pylist() == ["v00", "v02"]
