"""`keek-server index bench` and `tune` on a release that was really published."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from gate_towers import user_tower, video_tower, written

from keek_server.embedded import EmbeddedStack
from keek_server.releases.manifest import Manifest
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.towers.contract import CLIP_DIMENSION, DIMENSION
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing.publish import publish

SYNTH = "synth:users=200,videos=1200,interactions=6000,seed=2,end=2026-01-01"
PRIME = 8191
"""Rows of the video tower's table: next to no two videos share one."""


class Published(NamedTuple):
    settings: Settings
    manifest: Manifest

    @property
    def folder(self) -> Path:
        return self.settings.release_dir / self.manifest.release_id


@pytest.fixture(scope="module")
async def published(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Published]:
    """An active release of 1,200 videos, searched by lists."""
    folder = tmp_path_factory.mktemp("index")
    table = np.random.default_rng(3).normal(size=(PRIME, DIMENSION)).astype(np.float32)
    source = written(
        folder, user_tower(), video_tower(table=table, clip=np.zeros((CLIP_DIMENSION, DIMENSION), np.float32))
    )
    async with EmbeddedStack(settings_in(folder)) as stack:
        settings = stack.settings.model_copy(update={"index_exact_below": 100})
        async with open_database(settings) as database:
            await import_dataset(database, open_dataset(SYNTH))
        yield Published(settings, await publish(source, settings))


async def started(settings: Settings, words: Sequence[str], **environment: str) -> asyncio.subprocess.Process:
    given = {"KEEK_DATA_DIR": str(settings.data_dir), "KEEK_INDEX_EXACT_BELOW": "100", **environment}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KEEK_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keek_server", "index", *words),
        env=inherited | given,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(settings: Settings, *words: str, **environment: str) -> tuple[int | None, str, str]:
    process = await started(settings, words, **environment)
    async with asyncio.timeout(120):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def check(own: dict[str, Any]) -> None:
    """Of an effort or a kind: what holds on any machine."""
    assert 0 < own["recall"] <= 1
    assert 0 <= own["recall_error"] < 0.1
    assert 0 < own["p50_ms"] <= own["p99_ms"]
    assert own["speedup_vs_exact"] > 0
    assert own["batch_vs_single"] > 0


async def test_bench_measures_the_index_of_the_active_release(published: Published) -> None:
    code, output, errors = await run(published.settings, "bench", "--json", "--rounds", "1")
    assert code == 0, errors
    found = json.loads(output)
    index = published.manifest.index
    assert found["release"] == published.manifest.release_id
    assert (found["videos"], found["kind"], found["nlist"]) == (index.videos, "ivf_fp16", index.nlist)
    # All users were needed to tune it.
    assert (found["query_source"], found["queries_unseen"]) == ("users", False)
    assert found["queries"] == published.manifest.user_index.videos  # type: ignore[union-attr]
    assert found["exact_p50_ms"] > 0
    for own in found["efforts"]:
        check(own)
    (tuned,) = (own for own in found["efforts"] if own["is_tuned"])
    assert tuned["effort"] == index.nprobe
    # The same users, and the same index.
    assert tuned["recall"] == pytest.approx(index.recall_at_100, abs=1e-3)
    assert found["manifest_recall_at_100"] == index.recall_at_100
    assert tuple((own["depth"], own["effort"]) for own in found["depths"]) == index.efforts
    assert all(own["recall"] > 0.95 for own in found["depths"])


async def test_tune_builds_other_kinds_and_changes_nothing(published: Published, tmp_path: Path) -> None:
    before, picture = digests(published.folder), tmp_path / "plot.svg"
    kinds = ("exact", "ivf_fp16", "ivf_sq8")
    code, output, errors = await run(
        published.settings,
        *("tune", published.manifest.release_id, "--json", "--rounds", "1", "--plot", str(picture)),
        *("--recall", "0.9", "--kinds", *kinds),
        TMPDIR=str(tmp_path),
    )
    assert code == 0, errors
    assert "of 3 kinds built" in errors
    found = json.loads(output)
    assert [own["kind"] for own in found["kinds"]] == list(kinds)
    for own in found["kinds"]:
        check(own)
        assert own["recall"] > 0.85
        assert own["mib"] > 0
        assert own["build_s"] >= 0
        assert sum(effort["is_tuned"] for effort in own["efforts"]) == 1
    exact, half, codes = found["kinds"]
    assert (exact["nlist"], exact["effort"], exact["recall"]) == (0, 0, 1.0)
    assert 0 < half["effort"] <= half["nlist"] == published.manifest.index.nlist
    assert codes["rerank"] >= 1
    assert [own["kind"] for own in found["kinds"] if own["is_chosen"]] == [found["chosen"]]
    assert (found["recall_target"], found["memory_mib"], found["planned"]) == (0.9, None, "ivf_fp16")
    users = published.manifest.user_index.videos  # type: ignore[union-attr]
    assert found["tuned_with"] + found["queries"] == users
    assert b"ivf_sq8" in picture.read_bytes()
    assert digests(published.folder) == before
    assert names(tmp_path) == ["plot.svg"]


async def test_people_get_tables_and_a_plot(published: Published) -> None:
    code, output, errors = await run(published.settings, "bench", "--rounds", "1", "--k", "5000")
    assert code == 0, errors
    # No more than there are can be asked for.
    assert f"recall@{published.manifest.index.videos} of " in output
    assert "TUNED  EFFORT  RECALL@" in output
    assert "a ivf_fp16, b exact search; capitals: as tuned" in output


async def test_it_ends_at_once_when_it_is_stopped_and_leaves_nothing(
    published: Published, tmp_path: Path
) -> None:
    words = ("tune", "--kinds", "ivf_fp16", "--rounds", "1000000")
    process = await started(published.settings, words, TMPDIR=str(tmp_path))
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"steps" not in await process.stderr.readline():
            pass
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert (process.returncode, output) == (130, b"")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "environment", "code", "message"),
    [
        (["bench", "nothing"], {}, 1, "there is no release 'nothing' in "),
        (["bench", ".."], {}, 1, "there is no release '..' in "),
        (["tune"], {"KEEK_DATA_DIR": "{tmp}"}, 1, "no release is active yet: publish one, or name one"),
        (["tune", "--kinds", "best"], {}, 2, "invalid choice: 'best'"),
        (["bench", "--plot", "{tmp}/no/plot.png"], {}, 1, "there is no folder {tmp}/no for the plot"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_line(
    published: Published,
    tmp_path: Path,
    words: list[str],
    environment: dict[str, str],
    code: int,
    message: str,
) -> None:
    own = {name: value.format(tmp=tmp_path) for name, value in environment.items()}
    returned, output, errors = await run(published.settings, *(w.format(tmp=tmp_path) for w in words), **own)
    assert (returned, output) == (code, "")
    assert message.format(tmp=tmp_path) in errors.splitlines()[-1]
    assert "Traceback" not in errors
