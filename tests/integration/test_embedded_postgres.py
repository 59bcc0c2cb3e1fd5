"""The embedded PostgreSQL answers, keeps what was committed, and leaves nothing behind."""

import asyncio
import ctypes
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from patience import eventually
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

import keek_server
from keek_server.embedded import postgres_programs, procfs
from keek_server.embedded.ports import free_port
from keek_server.embedded.postgres import EmbeddedPostgres, running_postgres
from keek_server.embedded.postgres_cluster import make_cluster
from keek_server.embedded.postgres_programs import find_programs, wheel_folder
from keek_server.embedded.processes import SupervisedProcess
from keek_server.errors import SetupError

SESSION = """
import asyncio, sys
from pathlib import Path
from keek_server.embedded.postgres import running_postgres

async def main():
    async with running_postgres(Path(sys.argv[1]) if sys.argv[1:] else None) as postgres:
        connection = await postgres.service.connect()
        print(await connection.fetchval("SELECT current_database()"), flush=True)
        await asyncio.to_thread(input)
        await connection.close()

asyncio.run(main())
"""
"""A program that holds a PostgreSQL until a line comes in."""

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can close a folder to the user that PostgreSQL runs as"
)

SLOW = "generate_series(1, 100000) AS a, generate_series(1, 100000) AS b"
"""Rows that keep a session counting for minutes."""


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection]:
    """A connection whose statements take effect one by one."""
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def restarted(caplog: pytest.LogCaptureFixture) -> None:
    """Waits until the supervisor has seen that a second process is ready; the first try must work."""
    ready = "postgres is ready"
    await eventually(lambda: caplog.text.count(ready) == 2)
    assert caplog.text.count("restarting it") == 1


def mark_of(process: SupervisedProcess[EmbeddedPostgres]) -> str:
    """What the processes of a server are found by."""
    return process._mark


def assert_nothing_remains(mark: str, port: int) -> None:
    assert procfs.marked_processes(mark) == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections linger
        probe.bind(("127.0.0.1", port))


async def test_it_answers_on_its_url_and_is_set_up_as_in_production(postgres: EmbeddedPostgres) -> None:
    async with connected(postgres.url) as connection:
        assert await connection.scalar(sa.text("SELECT current_database()")) == "keek"
        wanted = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "server_encoding": "UTF8",
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
        }
        for name, value in wanted.items():
            assert await connection.scalar(sa.text(f"SHOW {name}")) == value
        collation = "SELECT datcollate FROM pg_database WHERE datname = 'keek'"
        assert await connection.scalar(sa.text(collation)) == "C"


async def test_who_does_not_know_the_password_is_refused(postgres: EmbeddedPostgres) -> None:
    wrong = sa.make_url(postgres.url).set(password="wrong").render_as_string(hide_password=False)
    with pytest.raises(Exception, match="password authentication failed"):
        async with connected(wrong):
            pytest.fail("it let us in")


async def test_a_database_of_one_test_is_new_and_empty(postgres: EmbeddedPostgres, postgres_url: str) -> None:
    assert postgres_url != postgres.url
    async with connected(postgres_url) as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert await connection.scalar(sa.text(tables)) == 0
        await connection.execute(sa.text("CREATE TABLE likes (video_id bigint)"))


async def test_what_was_committed_survives_kill_9(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_postgres() as process:
        url = process.service.url
        async with connected(url) as connection:
            await connection.execute(sa.text("CREATE TABLE likes (video_id bigint)"))
            await connection.execute(sa.text("INSERT INTO likes SELECT generate_series(1, 1000)"))
        os.kill(process.pid, signal.SIGKILL)
        await restarted(caplog)
        assert process.service.url == url
        async with connected(url) as connection:
            assert await connection.scalar(sa.text("SELECT count(*) FROM likes")) == 1000


async def test_a_session_that_does_not_see_its_server_die_does_not_delay_the_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with running_postgres() as process:
        client = await process.service.connect()
        busy = asyncio.create_task(client.fetchval(f"SELECT count(*) FROM {SLOW}"))
        await asyncio.sleep(0.2)
        assert not busy.done()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await busy
        await restarted(caplog)


async def test_nothing_remains_after_the_block_though_a_client_is_connected() -> None:
    async with running_postgres() as process:
        mark, port, data = mark_of(process), process.service.port, process.service._cluster.data
        client = await process.service.connect()
        # Itself, its workers, the session.
        await eventually(lambda: len(procfs.marked_processes(mark)) >= 5)
        process.service.stop_grace_s = 60.0  # a busy disk takes its time
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < process.service.stop_grace_s
    client.terminate()
    assert_nothing_remains(mark, port)
    assert not data.parent.exists()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user can enter, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="keek-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


async def test_nothing_remains_when_it_is_cancelled_while_it_is_set_up(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))

    async def run() -> None:
        async with running_postgres():
            pytest.fail("it started")

    starting = asyncio.create_task(run())
    await eventually(lambda: bool(list(open_folder.glob("*/data/base"))))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert names_in(open_folder) == []


async def test_a_given_directory_stays_and_holds_the_log(open_folder: Path) -> None:
    async with running_postgres(open_folder / "own"):
        pass
    assert "database system is shut down" in (open_folder / "own" / "postgres.log").read_text()
    # And a copy of the programs, where the user that runs them cannot reach the checkout.
    assert (
        {"data", "postgres.log"} <= set(names_in(open_folder / "own")) <= {"data", "postgres.log", "programs"}
    )


@pytest.fixture
def holder(open_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a PostgreSQL."""
    command = [sys.executable, "-c", SESSION, str(open_folder / "own")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "keek\n"
        yield program
        program.kill()


def remove_shared_memory(data: Path) -> None:
    """Removes the few bytes by which PostgreSQL sees who uses a data directory; they outlive it."""
    segment = int((data / "postmaster.pid").read_text().splitlines()[6].split()[1])
    assert ctypes.CDLL(None).shmctl(segment, 0, None) == 0  # IPC_RMID


async def test_after_kill_9_of_its_parent_nothing_runs_on(
    holder: subprocess.Popen[str], open_folder: Path
) -> None:
    [server] = procfs.children(holder.pid)
    workers = procfs.children(server)
    assert workers
    holder.kill()
    await eventually(lambda: not any(map(procfs.identity, {server, *workers})))
    remove_shared_memory(open_folder / "own" / "data")


async def test_a_port_that_someone_else_took_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        ports = iter([taken])
        monkeypatch.setattr(
            "keek_server.embedded.postgres.free_port", lambda: next(ports, None) or free_port()
        )
        async with running_postgres() as process, connected(process.service.url) as connection:
            assert next(ports, None) is None
            assert process.service.port != taken
            assert await connection.scalar(sa.text("SELECT 1")) == 1


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SetupError, match="is not empty"):
        make_cluster(tmp_path)


def test_the_wheel_comes_before_the_path_and_the_path_before_debian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(folder: Path) -> Path:
        folder.mkdir(parents=True)
        for program in ("postgres", "initdb"):
            (folder / program).touch(mode=0o755)
        return folder

    wheel = wheel_folder()
    assert wheel is not None
    assert find_programs() == wheel / "pginstall" / "bin"
    monkeypatch.setattr(postgres_programs, "wheel_folder", lambda: None)
    monkeypatch.setattr(postgres_programs, "SYSTEM", tmp_path / "debian")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(SetupError, match=r"no PostgreSQL: .* Run `make setup`"):
        find_programs()
    for version in ("9.6", "17", "8"):
        install(tmp_path / "debian" / version / "bin")
    assert find_programs() == tmp_path / "debian" / "17" / "bin"
    on_path = install(tmp_path / "path")
    assert find_programs() == on_path


@as_root
def test_a_directory_that_only_root_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(SetupError, match=r"user cannot reach .*/closed/own"):
        make_cluster(tmp_path / "closed" / "own")


@as_root
async def test_it_works_from_a_checkout_that_only_root_can_enter(tmp_path: Path) -> None:
    wheel = wheel_folder()
    assert wheel is not None
    checkout = tmp_path / "checkout"
    checkout.mkdir(mode=0o700)
    for folder in (Path(keek_server.__file__).parent, wheel, wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(folder, checkout / folder.name)
    assert stat.S_IMODE(checkout.stat().st_mode) == 0o700
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", SESSION],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        input="\n",
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("keek\n", "", 0)
