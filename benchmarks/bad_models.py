"""Broken models among good feeds: each is refused by its gate, and whoever asks for feeds notices nothing.

A small release is trained, published and served. Each broken pair is then given to `keek-train publish`, as
an engineer would, while feeds are asked for at a steady rate, and each of their scores is compared with what
it must be. After each, what serves must be what served before, and neither the model repository nor Triton
may have a version more.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from tritonclient.grpc.aio import InferenceServerClient

import keek.aio
from benchmarks.broken_models import BrokenModel, broken_models
from benchmarks.feed_load import FeedLoad, Tally
from benchmarks.feed_scores import ExpectedScores
from benchmarks.release_stage import Publication, Stage, open_stage, publish
from benchmarks.rotated_towers import write_rotated
from benchmarks.servers import report
from keek_server.towers.control import control_headers

_WARM_UP_S = 2.0
_LISTED_S = 10.0
_EXACT_BELOW = 100
"""So that a small corpus gets an index whose recall can suffer."""


def main() -> None:
    """Prints one JSON object, also to benchmarks/results/; exits with 1 when anything went wrong."""
    parser = argparse.ArgumentParser(description="Broken models")
    parser.add_argument("--only", default="", help="models whose names contain this (default: all)")
    parser.add_argument("--rate", type=float, default=20.0, help="calls a second (default: 20)")
    parser.add_argument("--users", type=int, default=100, help="users that ask (default: 100)")
    arguments = parser.parse_args()
    models = [model for model in broken_models() if arguments.only in model.name]
    os.environ["KEEK_INDEX_EXACT_BELOW"] = str(_EXACT_BELOW)
    with tempfile.TemporaryDirectory(prefix="keek-bad-models-") as directory:
        outcome = asyncio.run(_run(Path(directory), models, arguments))
    report("bad-models", outcome.as_dict())
    sys.exit(not outcome.passed)


@dataclass
class Outcome:
    """What came of the models."""

    tried: int = 0
    refused: int = 0
    """With an exit code other than 0."""
    right_reason: int = 0
    """In one line that names the gate."""
    release_unchanged: int = 0
    """Nothing else serves afterwards, nor was it to for a moment."""
    in_repository: int = 0
    """Versions left in the model repository or in Triton."""
    good_published: bool = False
    """Whether a good pair is published afterwards."""
    wrong: dict[str, str] = field(default_factory=dict)
    """By name: what was said of a model that was not refused rightly."""
    server_restarts: int = 0
    live: Tally = field(default_factory=Tally)
    seconds: float = 0.0

    @property
    def live_errors(self) -> int:
        """Feeds that failed, or had a wrong score."""
        return self.live.errors + self.live.mixed

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        went_wrong = self.wrong or self.live_errors or self.in_repository or self.server_restarts
        whole = self.tried == self.refused == self.right_reason == self.release_unchanged
        return self.tried > 0 and bool(self.live.samples) and whole and self.good_published and not went_wrong

    def as_dict(self) -> dict[str, object]:
        """For the report."""
        return {
            "tried": self.tried,
            "refused": self.refused,
            "right_reason": self.right_reason,
            "live_errors": self.live_errors,
            "release_unchanged": self.release_unchanged == self.tried,
            "in_repository": self.in_repository,
            "good_published": self.good_published,
            "live_feeds": len(self.live.samples),
            "live_degraded": self.live.degraded,
            "live_unpersonalised": self.live.unpersonalised,
            "server_restarts": self.server_restarts,
            "wrong": self.wrong,
            "faults": dict(self.live.faults),
            "seconds": round(self.seconds, 1),
        }


async def _run(directory: Path, models: list[BrokenModel], arguments: argparse.Namespace) -> Outcome:
    outcome = Outcome()
    async with open_stage(directory / "stage", "sqlite", server_count=1) as stage:
        (server,) = stage.servers
        pid = server.pid
        expected = await ExpectedScores.of(
            stage.towers, stage.settings, users=arguments.users, history_length=stage.history_length
        )
        load = FeedLoad(stage.addresses, expected, calls_per_s=arguments.rate)
        async with stage.admin() as admin, load.running() as outcome.live:
            await asyncio.sleep(_WARM_UP_S)
            started = time.monotonic()
            trial = _Trial(stage, admin, directory, outcome)
            for model in tqdm(models, file=sys.stderr):
                await trial.of(model)
            outcome.seconds = time.monotonic() - started
            await trial.of_a_good_one()
        outcome.server_restarts = int(server.pid != pid)
    return outcome


class _Trial:
    """Gives models to the publisher, one after the other."""

    def __init__(self, stage: Stage, admin: keek.aio.Client, directory: Path, outcome: Outcome) -> None:
        self._stage = stage
        self._admin = admin
        self._directory = directory
        self._outcome = outcome

    async def of(self, model: BrokenModel) -> None:
        """Tries a broken one."""
        outcome = self._outcome
        outcome.tried += 1
        plan_seq, versions = await self._plan_seq(), await self._versions()
        done = await self._published(model.name, model)
        outcome.refused += done.code != 0
        if done.code and model.is_refused_rightly(done.last_line) and "Traceback" not in done.output:
            outcome.right_reason += 1
        else:
            outcome.wrong[model.name] = f"code {done.code}: {done.last_line[-500:]}"
        outcome.release_unchanged += await self._plan_seq() == plan_seq
        outcome.in_repository += len(await self._versions() - versions)

    async def of_a_good_one(self) -> None:
        """Whoever mended a model must not suffer from what was refused before."""
        seq = await self._plan_seq()
        done = await self._published("good", None)
        self._outcome.good_published = done.code == 0 and await self._plan_seq() == seq + 1
        if done.code:
            self._outcome.wrong["good"] = f"code {done.code}: {done.last_line[-500:]}"

    async def _published(self, name: str, model: BrokenModel | None) -> Publication:
        folder = self._directory / name
        folder.mkdir()
        towers = self._stage.towers
        if model is None:
            files = await asyncio.to_thread(write_rotated, towers, 1, folder)
        else:
            files = await asyncio.to_thread(model.write, towers, folder)
        try:
            return await publish(files, "--history-length", str(self._stage.history_length))
        finally:
            for path in folder.iterdir():
                path.unlink()

    async def _plan_seq(self) -> int:
        """Counts up with every change of what serves."""
        return (await self._admin.list_releases(page_size=1)).rollout.plan.plan_seq

    async def _versions(self) -> set[str]:
        """What lies in the model repository, and what Triton has ready."""
        settings = self._stage.settings
        found = {str(path) for path in settings.model_repository.glob("*/*") if path.name != "config.pbtxt"}
        async with InferenceServerClient(settings.triton_url) as client:
            index = await client.get_model_repository_index(
                headers=control_headers(settings.triton_control_token), client_timeout=_LISTED_S
            )
        return found | {f"{each.name} {each.version}" for each in index.models if each.state == "READY"}


if __name__ == "__main__":
    main()
