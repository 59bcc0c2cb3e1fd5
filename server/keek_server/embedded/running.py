"""How other processes find the stack that runs in a data directory: `run/stack.json`."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from keek_server.embedded import procfs
from keek_server.errors import SetupError
from keek_server.settings import Settings


class RunningStack(BaseModel):
    """Where a running stack's servers are; None where it did not start its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    """The identity of the process that holds the stack (`procfs.identity`)."""
    owner_pid: int
    redis_url: str | None = None
    redis_pid: int | None = None
    triton_url: str | None = None
    triton_pid: int | None = None
    triton_control_token: str | None = Field(default=None, repr=False)
    admin_token: str | None = Field(default=None, repr=False)
    """Of servers on this stack, when the settings gave none."""

    def fill(self, settings: Settings) -> Settings:
        """The settings with this stack's servers where they name none."""
        found: dict[str, str | SecretStr] = {}
        if settings.redis_url is None and self.redis_url is not None:
            found["redis_url"] = self.redis_url
        if settings.triton_url is None and self.triton_url is not None:
            found["triton_url"] = self.triton_url
            found["triton_control_token"] = SecretStr(self.triton_control_token or "")
        if settings.admin_token is None and self.admin_token is not None:
            found["admin_token"] = SecretStr(self.admin_token)
        return settings.model_copy(update=found)


def run_dir(data_dir: Path) -> Path:
    """Holds what concerns the stack that runs at present."""
    return data_dir.absolute() / "run"


def admin_token_file(data_dir: Path) -> Path:
    """Holds the admin token that a stack made, alone, for the command `keek`."""
    return run_dir(data_dir) / "admin.token"


def write_running_stack(data_dir: Path, stack: RunningStack) -> None:
    """Replaces `stack.json`, and the admin token's file; readable by their owner only: they hold tokens."""
    _write_privately(_path(data_dir), stack.model_dump_json(indent=2))
    if stack.admin_token is not None:
        _write_privately(admin_token_file(data_dir), stack.admin_token + "\n")


def remove_running_stack(data_dir: Path) -> None:
    """Removes what `write_running_stack` wrote, if it is there."""
    _path(data_dir).unlink(missing_ok=True)
    admin_token_file(data_dir).unlink(missing_ok=True)


def _write_privately(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    aside.replace(path)


def read_running_stack(data_dir: Path) -> RunningStack | None:
    """The stack that runs in a data directory; None when none does.

    The file alone proves nothing: the process that wrote it must still be alive, and be that
    very process. A server of the stack may be down for the moment that its restart takes.

    Raises:
        SetupError: the file cannot be understood.
    """
    path = _path(data_dir)
    try:
        stack = RunningStack.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SetupError(f"{path} is damaged; remove it. {error}") from error
    return stack if procfs.identity(stack.owner_pid) == stack.owner else None


def with_running_stack(settings: Settings) -> Settings | None:
    """The settings with the servers of the stack that runs in their data directory; None when none does.

    Raises:
        SetupError: what says where they are cannot be understood.
    """
    running = read_running_stack(settings.data_dir)
    return None if running is None else running.fill(settings)


def _path(data_dir: Path) -> Path:
    return run_dir(data_dir) / "stack.json"
