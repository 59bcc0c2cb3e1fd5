"""What the tests of the CSV file that grows with the log do with it."""

import argparse
import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from patience import eventually
from projecting import event

from keek_server.commands import add_export_arguments, run_export
from keek_server.interactions.csv_tail import CsvTail
from keek_server.interactions.log import InteractionLog
from keek_server.settings import Settings


async def export_text(settings: Settings, out: Path) -> str:
    """What the whole log looks like when it is exported."""
    parser = argparse.ArgumentParser()
    add_export_arguments(parser)
    await run_export(parser.parse_args(["--out", str(out)]), settings)
    return text_of(out)


@asynccontextmanager
async def tailing(log: InteractionLog, path: Path) -> AsyncIterator["asyncio.Task[None]"]:
    """A scope in which the file follows the log."""
    task = asyncio.create_task(CsvTail(log, path, poll_s=0.01).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def grow(log: InteractionLog, count: int, *, first: int = 0) -> None:
    """Appends interactions that are told apart."""
    await log.append([event(f"u{i}", f"v,{i}") for i in range(first, first + count)])


async def until_written(text: str, path: Path) -> None:
    """Waits until the file is what it should be, with its position written too."""
    await eventually(lambda: text_of(path) == text and counted_bytes(path) == len(text.encode()))


def text_of(path: Path) -> str:
    """What is in the file; nothing when it is not there."""
    return path.read_text() if path.exists() else ""


def sidecar_of(path: Path) -> Path:
    """Where its position is."""
    return path.with_name(f"{path.name}.position")


def counted_bytes(path: Path) -> int:
    """Its size as its position says; -1 when there is none."""
    return int(json.loads(text_of(sidecar_of(path)) or '{"size": -1}')["size"])


def move_away(path: Path) -> None:
    """As its owner does who wants it written anew."""
    path.rename(path.with_name("old.csv"))


async def until_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Waits until something was said."""
    caplog.set_level(logging.INFO)
    await eventually(lambda: text in caplog.text)
