"""The fresh part: the newest stay, and searches see whole rows."""

import threading

import numpy as np
from live_rows import COLUMNS, DIMENSION, columns, vectors

from keek_server.retrieval.fresh import FreshPart


def test_a_row_without_a_vector_is_never_found() -> None:
    part = FreshPart(COLUMNS, limit=100)
    part.put(["seen", "unseen"], columns(np.array([[1.0] * 8, [np.nan] * 8], np.float32)))
    hits = part.search(np.ones((1, 8), np.float32), 10)
    finite = np.isfinite(hits.scores[0])
    assert [hits.id_of(row) for row in hits.rows[0][finite]] == ["seen"]


def test_of_more_than_the_limit_the_newest_stay() -> None:
    part = FreshPart(COLUMNS, limit=5000)
    rows = vectors(30_000, 1)
    rows[-1] *= 100
    for start in range(0, len(rows), 1000):
        part.put([f"v{i}" for i in range(start, start + 1000)], columns(rows[start : start + 1000]))
    assert 5000 <= len(part) < 15_000
    assert "v29999" in part
    assert "v0" not in part
    hits = part.search(rows[-1:], 3)
    best = hits.rows[0][np.argmax(hits.scores[0])]
    assert hits.id_of(best) == "v29999"


def test_hits_stay_readable_when_their_rows_have_gone() -> None:
    part = FreshPart(COLUMNS, limit=100)
    part.put(["old"], columns(vectors(1, 1)))
    hits = part.search(vectors(1, 1), 1)
    for start in range(0, 20_000, 1000):
        part.put([f"v{start + i}" for i in range(1000)], columns(vectors(1000, 2)))
    assert "old" not in part
    assert hits.id_of(int(hits.rows[0][0])) == "old"


def test_searches_in_another_thread_see_whole_rows_while_rows_come() -> None:
    """Every row's vector is its number: a torn row would score what no row scores."""
    part = FreshPart(COLUMNS, limit=100_000)
    failures: list[object] = []
    done = threading.Event()

    def search() -> None:
        query = np.eye(1, DIMENSION, dtype=np.float32)
        while not done.is_set():
            hits = part.search(query, 50)
            for score, row in zip(hits.scores[0], hits.rows[0], strict=True):
                if np.isfinite(score) and hits.id_of(int(row)) != f"v{int(score)}":
                    failures.append((score, row))

    thread = threading.Thread(target=search)
    thread.start()
    for number in range(1, 6000):
        row = np.zeros((1, DIMENSION), np.float32)
        row[0, 0] = number
        part.put([f"v{number}"], columns(row))
    done.set()
    thread.join()
    assert not failures


def test_rows_that_change_often_do_not_push_others_out() -> None:
    part = FreshPart(COLUMNS, limit=5000)
    part.put(["quiet"], columns(vectors(1, 1)))
    for turn in range(100):
        assert part.put([f"busy{i}" for i in range(1000)], columns(vectors(1000, turn))) == []
    assert "quiet" in part
    assert len(part) == 1001
    hits = part.search(np.ones((1, DIMENSION), np.float32), 5000)
    finite = np.isfinite(hits.scores[0])
    assert sorted(hits.id_of(int(row)) for row in hits.rows[0][finite]) == sorted(
        ["quiet", *(f"busy{i}" for i in range(1000))]
    )
    assert len(part._blocks) <= part._most_blocks


def test_a_query_that_is_not_finite_spoils_no_other() -> None:
    part = FreshPart(COLUMNS, limit=100)
    part.put(["a"], columns(np.ones((1, DIMENSION), np.float32)))
    queries = np.array([[np.nan] * DIMENSION, [1.0] * DIMENSION], np.float32)
    hits = part.search(queries, 1)
    assert not np.isfinite(hits.scores[0]).any()
    assert hits.scores[1].tolist() == [DIMENSION]
