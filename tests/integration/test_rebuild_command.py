"""`keek-server rebuild-projection` on a running stack, with and without a server beside it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from background import beside
from projecting import Parts, event, open_parts

from keek_server.embedded import EmbeddedStack

ROWS = 30


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    """A log with some rows, in a database of its own, and the Redis of the running stack."""
    url = f"sqlite+aiosqlite:///{tmp_path}/keek.db"
    # A lease of three seconds is lost where the machine pauses for about as long.
    own = {"database_url": url, "redis_deadline_s": 10.0, "projection_lease_s": 12.0}
    async with open_parts(stack.settings.model_copy(update=own)) as opened:
        await opened.log.append([event(f"u{i % 3}", f"v{i}") for i in range(ROWS)])
        yield opened


async def _command(parts: Parts, **environment: str) -> tuple[int | None, str, str]:
    """Runs the command without being told where Redis is."""
    settings = parts.settings
    given = {"KEEK_DATA_DIR": str(settings.data_dir), "KEEK_DATABASE_URL": settings.database_url}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KEEK_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keek_server", "rebuild-projection"),
        env={**inherited, **given, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_it_finds_the_running_stack_and_builds_the_projection(parts: Parts) -> None:
    code, output, errors = await _command(parts)
    assert code == 0, errors
    assert output == f"the projection was built anew, up to row {ROWS} of the log\n"
    assert f"of {ROWS} rows of the log" in errors
    assert await parts.projection.watermark() == ROWS


async def test_a_server_that_runs_builds_it_and_goes_on(parts: Parts) -> None:
    projector = parts.projector()
    async with beside(projector.run()):
        assert await projector.wait_for(ROWS, 30.0)
        before = await parts.writer().current()
        code, _, errors = await _command(parts)
        assert code == 0, errors
        after = await parts.writer().current()
        assert before is not None
        assert after is not None
        assert after.number > before.number
        assert projector.holds_lease
        seq = (await parts.log.append([event("u1", "another")])).seq
        assert await projector.wait_for(seq, 30.0)


async def test_without_a_stack_it_says_what_to_set(parts: Parts, tmp_path: Path) -> None:
    code, output, errors = await _command(parts, KEEK_DATA_DIR=str(tmp_path / "elsewhere"))
    assert (code, output) == (1, "")
    assert errors.endswith(
        "keek-server: no Redis given: set KEEK_REDIS_URL, or start with 'keek-server up'\n"
    )
