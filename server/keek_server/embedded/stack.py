"""The embedded stack: a real Triton and a real Redis-compatible server beside one program."""

import asyncio
import os
import secrets
import sys
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import SecretStr

from keek_server.embedded import procfs
from keek_server.embedded.claim import claimed
from keek_server.embedded.logs import new_log
from keek_server.embedded.processes import SupervisedProcess
from keek_server.embedded.redis import EmbeddedRedis
from keek_server.embedded.running import RunningStack, remove_running_stack, run_dir, write_running_stack
from keek_server.embedded.service import Service
from keek_server.embedded.triton import EmbeddedTriton
from keek_server.embedded.triton_environment import assemble_backends, find_environment
from keek_server.errors import SetupError
from keek_server.settings import Settings

ServiceT = TypeVar("ServiceT", bound=Service)


class EmbeddedStack:
    """Starts what the settings give no URL for, keeps it running, and stops it at exit.

    ```
    async with EmbeddedStack(settings) as stack:
        client = InferenceServerClient(stack.settings.triton_url)
    ```

    Everything has stopped when the block is left, however it is left. Should the process be
    killed, its servers die with it, and the next stack in the same `data_dir` removes the rest.
    """

    def __init__(self, settings: Settings) -> None:
        """Nothing is started yet."""
        self.settings = settings
        """Within the block: the settings given, with `redis_url`, `triton_url`,
        `triton_control_token` and `admin_token` filled in."""
        self.redis: SupervisedProcess[EmbeddedRedis] | None = None
        """The Redis-compatible server, when it is embedded."""
        self.triton: SupervisedProcess[EmbeddedTriton] | None = None
        """The tritonserver, when it is embedded."""
        self._given = settings
        self._control_token = SecretStr(secrets.token_urlsafe(32))
        self._admin_token = None if settings.admin_token is not None else secrets.token_urlsafe(32)
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Starts the servers side by side.

        Raises:
            SetupError: something needed is missing, a server does not start, or another stack
                runs in the same `data_dir`. Nothing is left running then.
        """
        async with AsyncExitStack() as resources:
            if self._given.redis_url is None or self._given.triton_url is None:
                await self._start(resources)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops what was started, side by side."""
        await self._resources.aclose()
        self.settings = self._given

    async def _start(self, resources: AsyncExitStack) -> None:
        if sys.platform != "linux":
            raise SetupError("the embedded servers need Linux: set KEEK_REDIS_URL and KEEK_TRITON_URL")
        data_dir = self._given.data_dir
        mark = resources.enter_context(claimed(run_dir(data_dir)))
        resources.callback(remove_running_stack, data_dir)
        children: list[SupervisedProcess[Any]] = []
        if self._given.redis_url is None:
            self.redis = self._supervised(EmbeddedRedis(run_dir(data_dir)), mark)
            children.append(self.redis)
        if self._given.triton_url is None:
            self.triton = self._supervised(await self._triton(mark), mark)
            children.append(self.triton)
        resources.push_async_callback(_stop_all, children)
        await _together(child.start() for child in children)
        self.settings = self._announce().fill(self._given)

    async def _triton(self, mark: str) -> EmbeddedTriton:
        settings = self._given
        if not settings.model_repository.is_dir():
            raise SetupError(f"the model repository {settings.model_repository} is missing")
        environment = await asyncio.to_thread(find_environment, settings.triton_environment)
        backends = await asyncio.to_thread(assemble_backends, environment, settings.data_dir / "backends")
        return EmbeddedTriton(
            environment,
            backends=backends,
            repository=settings.model_repository,
            mark=mark,
            control_token=self._control_token,
        )

    def _supervised(self, service: ServiceT, mark: str) -> SupervisedProcess[ServiceT]:
        return SupervisedProcess(
            service,
            mark=mark,
            log_path=new_log(self._given.data_dir.absolute() / "logs" / f"{service.name}.log"),
            ready_timeout_s=self._given.startup_timeout_s,
            on_restart=self._announce,
        )

    def _announce(self) -> RunningStack:
        """Tells other processes where the servers are; again whenever one was restarted."""
        redis, triton = self.redis, self.triton
        stack = RunningStack(
            owner=procfs.identity(os.getpid()) or "",
            owner_pid=os.getpid(),
            redis_url=redis.service.url if redis else None,
            redis_pid=redis.pid if redis else None,
            triton_url=triton.service.url if triton else None,
            triton_pid=triton.pid if triton else None,
            triton_control_token=self._control_token.get_secret_value() if triton else None,
            admin_token=self._admin_token,
        )
        write_running_stack(self._given.data_dir, stack)
        return stack


async def _together(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Awaits calls side by side; an error cancels the others, waits for them and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except ExceptionGroup as errors:
        # One reason is enough for people; a second server's is mostly the same.
        raise errors.exceptions[0] from errors


async def _stop_all(children: Sequence[SupervisedProcess[Any]]) -> None:
    await _together(child.stop() for child in children)
