"""The index in Milvus beyond the contract that all indexes have in test_engines.py: depths, faults, alias."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from milvus import connected, lite_path, served_lite
from pydantic import ValidationError

from keek_server.embedded.ports import free_port
from keek_server.errors import SetupError, UnavailableError
from keek_server.retrieval import milvus as milvus_index
from keek_server.retrieval import milvus_store
from keek_server.retrieval.build import IndexOptions
from keek_server.retrieval.index import IndexReport, Rows
from keek_server.retrieval.milvus import MilvusIndex
from keek_server.retrieval.milvus_store import Milvus
from keek_server.retrieval.tuning import recall_at_k
from keek_server.settings import Settings
from keek_server.towers.contract import DIMENSION
from keek_training.publishing.milvus import build_collection

COUNT = 3000
RNG = np.random.default_rng(7)
VIDEOS = RNG.normal(size=(COUNT, DIMENSION)).astype(np.float32)
USERS = RNG.normal(size=(8, DIMENSION)).astype(np.float32)
SCORES = USERS @ VIDEOS.T
EXACT = IndexOptions(exact_below=COUNT + 1, recall_target=0.99)
LATE_S = 3.0
"""The deadline once nothing is answered any more. Before, a busy machine may take longer."""


@pytest.fixture(scope="module")
def milvus() -> Iterator[Milvus]:
    with lite_path() as path, connected(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def index(milvus: Milvus) -> MilvusIndex:
    return build_collection(milvus, "deep-1", VIDEOS, USERS, EXACT)[0]


def small(milvus: Milvus, release_id: str, count: int = 20) -> MilvusIndex:
    return build_collection(milvus, release_id, VIDEOS[:count], USERS, EXACT)[0]


def report(count: int) -> IndexReport:
    """Of an exact one."""
    return IndexReport("milvus", count, 0, 0, 1.0, 1, 0.0)


def exact(k: int, allowed: np.ndarray) -> Rows:
    return np.argsort(-np.where(allowed, SCORES, -np.inf), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("k", [20, 200])
def test_many_allowed_rows_are_found_among_the_best(
    index: MilvusIndex, monkeypatch: pytest.MonkeyPatch, share: float, k: int
) -> None:
    monkeypatch.setattr(milvus_index, "SCORED_ALONE", 50)
    allowed = np.random.default_rng(3).random(COUNT) < share
    scores, rows = index.search(USERS, k, allowed)
    assert rows.tolist() == exact(k, allowed).tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(SCORES, rows, 1), rtol=1e-4)


def test_allowed_rows_that_lie_far_away_are_found_though_milvus_does_not_go_so_deep(
    index: MilvusIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_index, "SCORED_ALONE", 50)
    monkeypatch.setattr(milvus_index, "TOPK_MOST", 1000)
    allowed = np.zeros(COUNT, np.bool_)
    allowed[np.argsort(SCORES[0])[:400]] = True
    _, rows = index.search(USERS, 100, allowed)
    assert rows.tolist() == exact(100, allowed).tolist()


@pytest.mark.parametrize("with_filter", [False, True])
def test_more_rows_than_milvus_gives_are_found(
    index: MilvusIndex, monkeypatch: pytest.MonkeyPatch, with_filter: bool
) -> None:
    monkeypatch.setattr(milvus_index, "SCORED_ALONE", 50)
    monkeypatch.setattr(milvus_index, "TOPK_MOST", 500)
    allowed = np.arange(COUNT) % 3 != 0 if with_filter else np.ones(COUNT, np.bool_)
    _, rows = index.search(USERS, 600, allowed if with_filter else None)
    assert rows.tolist() == exact(600, allowed).tolist()


def test_answers_that_would_be_too_large_come_in_parts(
    index: MilvusIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_store, "_RESULTS_MOST", 100)
    _, rows = index.search(USERS, 30)
    assert rows.tolist() == exact(30, np.ones(COUNT, np.bool_)).tolist()


def test_the_effort_at_each_depth_reaches_the_target_without_searching_all_lists(milvus: Milvus) -> None:
    centres = RNG.normal(size=(40, DIMENSION))
    videos, users = (
        (centres[RNG.integers(0, 40, count)] + 0.4 * RNG.normal(size=(count, DIMENSION))).astype(np.float32)
        for count in (4000, 64)
    )
    index, built = build_collection(milvus, "lists-1", videos, users, IndexOptions(0, 0.95))
    assert (built.kind, built.videos, built.recall_queries) == ("milvus", 4000, 64)
    assert [depth for depth, _ in built.efforts] == [100, 400, 1600]
    efforts = [effort for _, effort in built.efforts]
    assert 1 <= built.nprobe == efforts[0] < built.nlist
    assert efforts == sorted(efforts)
    for depth in (100, 400):
        wanted = np.argsort(-(users @ videos.T), axis=1)[:, :depth]
        assert recall_at_k(index.candidates(users, depth, built.effort(depth))[1], wanted) >= 0.93


def test_a_publisher_that_begins_again_replaces_what_is_half_filled(milvus: Milvus) -> None:
    collection = milvus.create("half-1")
    milvus.insert(collection, 0, VIDEOS[:7])
    milvus.build(collection, "FLAT", 0)
    with pytest.raises(SetupError, match="has 7 rows, not 20: publish again"):
        milvus.open("half-1", 20)
    small(milvus, "half-1")
    assert milvus.open("half-1", 20) == collection == "keek_videos_half_1"


def test_a_release_without_its_collection_is_not_opened(milvus: Milvus) -> None:
    with pytest.raises(SetupError, match="lacks collection keek_videos_none_1 of release none-1"):
        MilvusIndex.open(milvus, "none-1", report(20), VIDEOS[:20])


def test_the_alias_follows_and_is_no_obstacle_to_dropping(milvus: Milvus) -> None:
    first, second = small(milvus, "a-1"), small(milvus, "b-2", 10)

    def aliased() -> int:
        with milvus._calls("ask") as client:
            return int(client.query("keek_videos", output_fields=["count(*)"])[0]["count(*)"])

    for release_id, count in (("a-1", 20), ("b-2", 10), ("b-2", 10), ("a-1", 20)):
        milvus.point_alias(release_id)
        assert aliased() == count
    assert {"a-1", "b-2"} <= set(milvus.releases())
    milvus.drop("a-1")
    milvus.drop("a-1")
    assert "a-1" not in milvus.releases()
    with pytest.raises(UnavailableError):
        first.search(USERS, 5)
    assert second.search(USERS, 5)[1].shape == (8, 5)
    milvus.point_alias("b-2")
    assert aliased() == 10
    with pytest.raises(UnavailableError, match="switch alias keek_videos to keek_videos_a_1"):
        milvus.point_alias("a-1")


def test_it_is_loaded_again_after_a_restart() -> None:
    with lite_path() as path:
        for restart in (False, True):
            with served_lite(path) as url, connected(url) as milvus:
                if not restart:
                    small(milvus, "r-1")
                found = MilvusIndex.open(milvus, "r-1", report(20), VIDEOS[:20]).search(USERS, 20)[1]
                assert np.sort(found, axis=1).tolist() == [list(range(20))] * 8


def answers(index: MilvusIndex) -> bool:
    try:
        return index.search(USERS, 5)[1].shape == (8, 5)
    except UnavailableError:
        return False


def within(seconds: float, search: Callable[[], object], match: str) -> None:
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=match):
        search()
    assert time.monotonic() - start < seconds


def test_a_milvus_that_is_gone_is_unavailable_in_time_and_is_found_again() -> None:
    with lite_path() as path, ExitStack() as stack:
        # A port that no connection takes while nobody listens on it.
        with served_lite(path, free_port()) as url, connected(url) as patient:
            small(patient, "r-1")
            milvus = stack.enter_context(connected(url))
            index = MilvusIndex.open(milvus, "r-1", report(20), VIDEOS[:20])
            assert answers(index)
        milvus._deadline_s = LATE_S
        for _ in range(2):
            within(15.0, lambda: index.search(USERS, 5), "^Milvus does not search keek_videos_r_1: ")
        # What needs no Milvus is found.
        assert index.search(USERS, 5, np.arange(20) < 9)[1].shape == (8, 5)
        with served_lite(path, port=int(url.rpartition(":")[2])) as url, connected(url) as patient:
            patient.open("r-1", 20)
            end = time.monotonic() + 60
            while not answers(index):
                assert time.monotonic() < end


def test_a_milvus_that_says_nothing_is_unavailable_in_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        connected(f"http://127.0.0.1:{silent.getsockname()[1]}", deadline_s=0.5) as milvus,
    ):
        within(15.0, lambda: milvus.open("r-1", 20), "^Milvus cannot be reached: ")


def test_a_connection_that_falls_silent_is_late_and_no_longer(milvus: Milvus) -> None:
    small(milvus, "silent-1")
    with closing(Relay(milvus)) as relay, connected(relay.url) as through:
        index = MilvusIndex(through, "keek_videos_silent_1", report(20), VIDEOS)
        assert index.search(USERS, 5)[1].shape == (8, 5)
        relay.silent, through._deadline_s = True, LATE_S
        within(15.0, lambda: index.search(USERS, 5), "^Milvus does not search")


class Relay:
    """Passes bytes on to a Milvus, until it is told to keep them."""

    def __init__(self, milvus: Milvus) -> None:
        with milvus._calls("tell") as client:
            host, _, port = client._config.address.rpartition(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.silent = False
        self._threads = [Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in self._open:
            each.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listening.accept()[0]
            except OSError:
                return
            pair = near, socket.create_connection(self._target)
            for each in pair:
                each.settimeout(0.1)
            self._open += pair
            for source, target in (pair, pair[::-1]):
                self._threads.append(Thread(target=self._pass, args=(source, target)))
                self._threads[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        while True:
            try:
                data = source.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            if not self.silent:
                target.sendall(data)


def test_a_file_that_another_has_open_is_a_matter_of_setup() -> None:
    with (
        lite_path() as path,
        served_lite(path),
        connected(path) as milvus,
        pytest.raises(SetupError, match=r"^cannot open Milvus: .*\(KEEK_MILVUS_URL\)$"),
    ):
        milvus.releases()


@pytest.mark.parametrize("url", ["milvus:19530", "/nowhere/milvus.db"])
def test_a_url_that_is_none_is_a_matter_of_setup(url: str) -> None:
    with (
        connected(url) as milvus,
        pytest.raises(SetupError, match=r"^cannot open Milvus: .*\(KEEK_MILVUS_URL\)$"),
    ):
        milvus.releases()


def test_the_kind_needs_a_url(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="index_kind milvus needs milvus_url"):
        Settings(data_dir=tmp_path, index_kind="milvus")
    assert Settings(index_kind="milvus", milvus_url="m.db").milvus_alias == "keek_videos"


def test_pymilvus_is_imported_when_it_is_used_and_brings_no_variables(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KEEK_FROM_DOTENV=1\n")
    program = (
        "import logging, os, sys\n"
        "import keek_server.app, keek_training.publishing.publish\n"
        "assert 'pymilvus' not in sys.modules and 'pandas' not in sys.modules\n"
        "from keek_server.retrieval.milvus_connection import pymilvus\n"
        "before = dict(os.environ)\n"
        "pymilvus()\n"
        "assert 'pymilvus' in sys.modules and dict(os.environ) == before\n"
        "assert not logging.getLogger('pymilvus').handlers\n"
    )
    # Not from a file: only then is `.env` looked for in the working directory.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
