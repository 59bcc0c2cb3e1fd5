"""The device of a GPU: what is said where it is not there, and what it finds and holds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import faiss
import numpy as np
import pytest
from small_indexes import USERS, built

from keek_server.errors import SetupError
from keek_server.retrieval import cuda
from keek_server.retrieval.cuda import CudaDevice, open_gpu
from keek_server.retrieval.index import FaissIndex, Rows
from keek_server.retrieval.kinds import GpuKind, MainKind
from keek_server.retrieval.tuning import recall_at_k
from keek_server.settings import Settings


def test_a_faiss_for_cpus_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with (
        pytest.raises(SetupError, match=r"keek\[gpu\] in an environment without faiss-cpu"),
        open_gpu(Settings(index_gpu=0)),
    ):
        pass


@pytest.mark.parametrize("kind", get_args(GpuKind))
def test_a_gpu_that_is_not_there_is_said_not_to_be(monkeypatch: pytest.MonkeyPatch, kind: GpuKind) -> None:
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    with pytest.raises(SetupError, match="KEEK_INDEX_GPU is 1, but FAISS finds 1 GPUs"):
        CudaDevice(1, kind)


def test_a_faiss_without_cuvs_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.delattr(faiss, "GpuIndexCagra", raising=False)
    with pytest.raises(SetupError, match=r"keek\[gpu-cuvs\]"):
        CudaDevice(0, "cagra")


class Fogged:
    """Stands for a graph of CAGRA: it finds what is right once it keeps enough candidates."""

    def __init__(self, own: FaissIndex, needed: int) -> None:
        self._own = own
        self._needed = needed
        self.beams: list[int] = []

    def search(self, queries: Any, k: int, *, params: Any, numeric_type: int) -> tuple[None, Rows]:
        assert (queries.dtype, numeric_type) == (np.float16, faiss.Float16)
        self.beams.append(params.itopk_size)
        rows = self._own.search(queries.astype(np.float32), k)[1]
        return None, rows if params.itopk_size >= self._needed else np.full_like(rows, -1)


@pytest.mark.parametrize(("needed", "beam", "deepest"), [(1, 128, 400), (200, 256, 200), (9999, 512, 100)])
def test_a_graph_keeps_as_many_candidates_as_it_takes_and_scores_them_by_whole_vectors(
    monkeypatch: pytest.MonkeyPatch, needed: int, beam: int, deepest: int
) -> None:
    monkeypatch.setattr(cuda, "_faiss", SimpleNamespace(SearchParametersCagra=SimpleNamespace))
    own = built(1)
    fogged = Fogged(own, needed)
    graph = cuda._Graph(own, fogged)
    assert fogged.beams[-1] == beam
    assert [graph.takes(k) for k in (1, 100, deepest, deepest + 1)] == [True, True, True, False]
    scores, rows = graph.find(USERS, 20)
    if needed > beam:
        assert (rows < 0).all()
        return
    expected = own.search(USERS, 20)
    # Queries are rounded to float16 on their way, which may swap neighbours.
    np.testing.assert_allclose(scores, expected[0], rtol=1e-2)
    assert recall_at_k(rows, expected[1]) > 0.95
    graph.find(USERS, deepest)
    assert beam * deepest // 100 <= fogged.beams[-1] <= 512


def test_without_the_setting_there_is_no_gpu() -> None:
    with open_gpu(Settings()) as gpu:
        assert gpu is None


@pytest.mark.parametrize("kind", get_args(MainKind))
def test_a_copy_is_said_to_take_no_less_than_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: MainKind
) -> None:
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    index = built(1, count=4000, kind=kind)
    index.save(tmp_path / "index.faiss")
    # Of HNSW the vectors go there alone, in half as many bytes.
    file = 4000 * 16 * 2 if kind == "hnsw" else (tmp_path / "index.faiss").stat().st_size
    search = 256 << 20
    # But for what the file says of its quantisers. Lists of so few rows are mostly what is rounded up.
    assert file - 10_000 <= CudaDevice(0).bytes_of(index) - search <= 5 * file
