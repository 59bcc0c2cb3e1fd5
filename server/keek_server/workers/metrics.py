"""The metrics of all workers as one: they write prometheus_client's files, and their parent adds them up."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from keek_server.metrics_endpoint import metrics_endpoint


class _Workers(Collector):
    def __init__(self, serving: Callable[[], int], restarts: Callable[[], int]) -> None:
        self._serving = serving
        self._restarts = restarts

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("keek_workers_serving", "Workers that take calls.", self._serving())
        restarts = "Workers that ended by themselves and were started again."
        yield CounterMetricFamily("keek_worker_restarts", restarts, self._restarts())


class WorkerMetrics:
    """A folder for the workers' files, which goes when the block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def forget(self, pid: int) -> None:
        """Takes a worker that has ended out of gauges; what it counted stays."""
        mark_process_dead(pid, str(self.folder))  # type: ignore[no-untyped-call]


@contextmanager
def worker_metrics(
    address: str, serving: Callable[[], int], restarts: Callable[[], int]
) -> Iterator[WorkerMetrics]:
    """Answers for all workers at host:port.

    Args:
        address: Where.
        serving: How many take calls.
        restarts: How many were started in the place of one that had ended by itself.

    Raises:
        SetupError: When the address cannot be bound.
    """
    with TemporaryDirectory(prefix="keek-metrics-") as folder:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        registry.register(_Workers(serving, restarts))
        with metrics_endpoint(address, registry):
            yield WorkerMetrics(Path(folder))
