"""The command: runs on each database in turn, and says what came of it."""

import argparse
import asyncio
import json
import logging
import secrets
import sys
import time
from pathlib import Path

from benchmarks.arena import DATABASES
from benchmarks.torture.run import Result, torture

_OUTPUT = Path("benchmarks/results/torture.json")


def main() -> None:
    """Prints one JSON object as the last line; exits with 1 when anything was lost, doubled or unequal."""
    parser = argparse.ArgumentParser(prog="benchmarks.torture", description="Kills under load")
    parser.add_argument("--cycles", type=int, default=30, help="kills on each database (default: 30)")
    parser.add_argument("--database", choices=(*DATABASES, "both"), default="both", help="default: both")
    parser.add_argument("--seed", type=int, help="of kills and events (default: random)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)  # that what was killed has died is no news
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    databases = DATABASES if arguments.database == "both" else (arguments.database,)
    started = time.monotonic()
    results = {name: asyncio.run(torture(name, cycles=arguments.cycles, seed=seed)) for name in databases}
    total = Result()
    for result in results.values():
        total.add(result)
    report = total.as_dict() | {name: result.as_dict() for name, result in results.items()}
    text = json.dumps(report | {"seed": seed, "seconds": round(time.monotonic() - started, 1)})
    _OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    _OUTPUT.write_text(text + "\n", "utf-8")
    print(text)
    sys.exit(not total.passed)


if __name__ == "__main__":
    main()
