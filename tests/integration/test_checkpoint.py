"""What is kept of an embedding that was cut off: what is whole, of the same towers, and not outdated."""

from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from keek_server.storage.database import Database
from keek_server.storage.tables import videos
from keek_server.towers.contract import DIMENSION
from keek_server.videos.changes import advance_clock
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing.catalogue import Catalogue, read_catalogue
from keek_training.publishing.checkpoint import Checkpoint


@pytest.fixture
async def catalogue(database: Database) -> Catalogue:
    await import_dataset(database, open_dataset("synth:users=20,videos=60,interactions=400,end=2026-01-01"))
    return await read_catalogue(database)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


def vectors_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


async def opened(path: Path, catalogue: Catalogue, database: Database, of: str = "monday") -> Checkpoint:
    return await Checkpoint.open(path, of, catalogue.seq, database)


def restored(checkpoint: Checkpoint, catalogue: Catalogue) -> tuple[list[int], np.ndarray]:
    """The rows that are there, and all vectors, zeros where there is none."""
    vectors = np.zeros((len(catalogue), DIMENSION), np.float32)
    return np.flatnonzero(checkpoint.restore(catalogue, vectors)).tolist(), vectors


async def test_what_was_added_comes_back_by_id_and_the_later_of_two_counts(
    path: Path, catalogue: Catalogue, database: Database
) -> None:
    first = await opened(path, catalogue, database)
    vectors = vectors_of(60)
    first.add(catalogue.video_ids[40:60], vectors[40:60])
    first.add(catalogue.video_ids[:20], vectors_of(20, seed=1))
    first.add(catalogue.video_ids[:20], vectors[:20])
    rows, found = restored(await opened(path, catalogue, database), catalogue)
    assert rows == [*range(20), *range(40, 60)]
    np.testing.assert_array_equal(found[rows], vectors[rows])
    # Rows move when videos come and go; the ids do not.
    fewer = Catalogue(catalogue.seq, video_ids=catalogue.video_ids[10:])
    rows, found = restored(await opened(path, catalogue, database), fewer)
    assert rows == [*range(10), *range(30, 50)]
    np.testing.assert_array_equal(found[rows], vectors[10:][rows])


def size_of(path: Path) -> int:
    return path.stat().st_size


def damaged(path: Path, whole: int, damage: str) -> None:
    """Damages what comes behind the first `whole` bytes."""
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-1]
    elif damage == "flipped":
        content[whole + 100] ^= 1
    else:
        # What a power cut leaves of a file that had grown already.
        content[whole:] = bytes(len(content) - whole)
    path.write_bytes(content)


@pytest.fixture
def broken(request: pytest.FixtureRequest, path: Path) -> Path:
    path.write_bytes(request.param)
    return path


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros"])
async def test_a_part_that_is_not_whole_is_left_out_and_what_follows_is_found(
    path: Path, catalogue: Catalogue, database: Database, damage: str
) -> None:
    vectors = vectors_of(60)
    checkpoint = await opened(path, catalogue, database)
    checkpoint.add(catalogue.video_ids[:10], vectors[:10])
    whole = size_of(path)
    checkpoint.add(catalogue.video_ids[10:30], vectors[10:30])
    damaged(path, whole, damage)
    again = await opened(path, catalogue, database)
    assert restored(again, catalogue)[0] == list(range(10))
    again.add(catalogue.video_ids[50:], vectors[50:])
    rows, found = restored(await opened(path, catalogue, database), catalogue)
    assert rows == [*range(10), *range(50, 60)]
    np.testing.assert_array_equal(found[rows], vectors[rows])


@pytest.mark.parametrize(
    "broken", [b"", b"\n", b"no JSON\n", b"[1]\n", b'{"fingerprint": "monday"}\n'], indirect=True
)
async def test_of_a_file_that_is_none_nothing_comes_back(
    broken: Path, catalogue: Catalogue, database: Database
) -> None:
    checkpoint = await opened(broken, catalogue, database)
    assert restored(checkpoint, catalogue)[0] == []
    checkpoint.add(catalogue.video_ids[:5], vectors_of(5))
    assert restored(await opened(broken, catalogue, database), catalogue)[0] == list(range(5))


async def test_the_vectors_of_other_towers_are_not_taken(
    path: Path, catalogue: Catalogue, database: Database
) -> None:
    checkpoint = await opened(path, catalogue, database)
    checkpoint.add(catalogue.video_ids, vectors_of(60))
    assert restored(await opened(path, catalogue, database, of="tuesday"), catalogue)[0] == []
    assert restored(await opened(path, catalogue, database), catalogue)[0] == []


async def test_a_video_that_changed_since_is_embedded_again_however_often_it_is_cut_off(
    path: Path, catalogue: Catalogue, database: Database
) -> None:
    checkpoint = await opened(path, catalogue, database)
    checkpoint.add(catalogue.video_ids, vectors_of(60))

    def change(connection: sa.Connection) -> None:
        seq = advance_clock(connection, 1)
        changed = videos.update().where(videos.c.video_id == catalogue.video_ids[7])
        connection.execute(changed.values(change_seq=seq, owner_id="somebody else"))

    await database.transact(change)
    later = await read_catalogue(database)
    assert later.seq > catalogue.seq
    for _ in range(2):
        again = await opened(path, later, database)
        assert restored(again, later)[0] == [row for row in range(60) if row != 7]
        again.add(catalogue.video_ids[7:8], vectors_of(1, seed=2))
