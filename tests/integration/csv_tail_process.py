"""A process that does nothing but keep a CSV file up to date with the log, until it is killed."""

import asyncio
import logging
import sys
from pathlib import Path

from keek_server.interactions import csv_tail
from keek_server.interactions.csv_tail import CsvTail
from keek_server.interactions.log import InteractionLog
from keek_server.settings import Settings
from keek_server.storage.database import open_database


async def _main(data_dir: str, database_url: str, path: str) -> None:
    async with open_database(Settings(data_dir=Path(data_dir), database_url=database_url)) as database:
        await CsvTail(InteractionLog(database), Path(path), poll_s=0.001).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    # Many small appends, so that a kill finds one under way.
    csv_tail._ROWS = 20
    asyncio.run(_main(*sys.argv[1:]))
