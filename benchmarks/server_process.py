"""The servers under test: processes that are started again at once, however often they are killed."""

import asyncio
import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from keek_server.embedded import launch
from keek_server.embedded.logs import log_tail
from keek_server.embedded.ports import HOST, free_port
from keek_server.settings import Settings

_PAUSE_S = 0.1
"""Before a server that ended by itself is started again."""
_METRICS_S = 0.5
_ACTIVE = re.compile(r"^keek_projector_active 1", re.MULTILINE)


class ServerProcess:
    """One `keek-server serve`. It dies with this process, however that dies."""

    def __init__(self, name: str, settings: Settings, logs: Path, options: Sequence[str] = ()) -> None:
        """Finds its ports, which stay the same.

        Args:
            name: Names its log file.
            settings: What it runs with, but for the ports.
            logs: Where its log file is.
            options: Of the command.
        """
        self.name = name
        self._options = options
        self.address = f"{HOST}:{free_port()}"
        self.interactions_address = f"{HOST}:{free_port()}"
        """Of interactions alone."""
        self._metrics_address = f"{HOST}:{free_port()}"
        own = {
            "listen": self.address,
            "interactions_listen": self.interactions_address,
            "metrics_listen": self._metrics_address,
        }
        self._settings = settings.model_copy(update=own)
        self._log = logs / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs, or that ran last."""
        assert self._process is not None
        return self._process.pid

    async def run(self) -> None:
        """Keeps it running until cancelled; then nothing of it is left."""
        while True:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command(), stdout=log, stderr=log, start_new_session=True
                )
            try:
                code = await self._process.wait()
            finally:
                await self.kill()
            if code != -signal.SIGKILL:
                last = self.log_tail().rpartition("\n")[2]
                print(f"{self.name} ended by itself with code {code}: {last}", file=sys.stderr)
                await asyncio.sleep(_PAUSE_S)

    async def kill(self) -> None:
        """As `kill -9` does; harmless when it has ended already."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def freeze(self, seconds: float) -> None:
        """Stops it for a while in whatever it does; harmless when it has ended, or ends meanwhile."""
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(seconds)
                process.send_signal(signal.SIGCONT)

    async def projects(self) -> bool:
        """Whether it holds the projection's lease, as far as it knows."""
        with suppress(OSError):
            return bool(_ACTIVE.search(await self.metrics()))
        return False

    async def metrics(self) -> str:
        """What it tells Prometheus.

        Raises:
            OSError: When it does not answer.
        """
        return await asyncio.to_thread(self._scrape)

    def log_tail(self) -> str:
        """The end of its log."""
        return log_tail(self._log, 0)

    def _scrape(self) -> str:
        with urllib.request.urlopen(f"http://{self._metrics_address}/metrics", timeout=_METRICS_S) as answer:
            return str(answer.read(), "utf-8")

    def _command(self) -> list[str]:
        changes: launch.Changes = {
            "set": variables(self._settings),
            "prepend": {},
            "drop": [name for name in os.environ if name.startswith("KEEK_")],
            "user": None,
        }
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), json.dumps(changes)]
        return [*launcher, sys.executable, "-m", "keek_server", "serve", *self._options]


def variables(settings: Settings) -> dict[str, str]:
    """The `KEEK_*` variables that give these settings."""
    secret = {"triton_control_token", "admin_token"}
    values = settings.model_dump(mode="json", exclude_defaults=True, exclude=secret)
    if settings.admin_token is not None:
        # As JSON it would be asterisks, which anybody knows.
        values["admin_token"] = settings.admin_token.get_secret_value()
    return {
        f"KEEK_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }
