"""Runs the command line `keek` as a program."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_server import Server

KEEK = Path(sys.executable).with_name("keek")
PATIENCE = ("--timeout-s", "60")
"""The deadline of commands that are given none: the machine may pause for longer than a feed may take."""


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended."""

    code: int | None
    out: str
    err: str

    @property
    def lines(self) -> list[list[str]]:
        """The words of each line of stdout."""
        return [line.split() for line in self.out.splitlines()]

    @property
    def json(self) -> list[Any]:
        """The objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@contextlib.contextmanager
def interruptible_programs() -> Iterator[None]:
    """Programs started now can be interrupted, also where the tests run as a background job.

    Shells have those ignore SIGINT, which is handed down to every program they start.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def start(
    target: str | None, *arguments: str, variables: Mapping[str, str] | None = None, **streams: int
) -> asyncio.subprocess.Process:
    # Output is buffered as it is by default.
    unset = {"KEEK_TARGET", "KEEK_ADMIN_TOKEN", "KEEK_ADMIN_TOKEN_FILE", "PYTHONUNBUFFERED"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= variables or {}
    if target is not None:
        environment["KEEK_TARGET"] = target
    piped = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, **streams}
    return await asyncio.create_subprocess_exec(KEEK, *PATIENCE, *arguments, env=environment, **piped)  # type: ignore[arg-type]


async def finish(process: asyncio.subprocess.Process) -> Done:
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return Done(process.returncode, (out or b"").decode(), (err or b"").decode())


async def run_keek(target: str | None, *arguments: str, variables: Mapping[str, str] | None = None) -> Done:
    return await finish(await start(target, *arguments, variables=variables))


async def run_import(server: Server, path: Path, *options: str) -> Done:
    """`keek videos import`."""
    return await run_keek(server.target, "videos", "import", str(path), *options)


def state_file(path: Path) -> Path:
    """Where the import of `path` keeps what it has done."""
    return path.with_name(path.name + ".keek-import")
