"""What a supervisor needs to know about the program that it keeps running."""

import signal
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class User:
    """Whom a program runs as."""

    uid: int
    gid: int
    """Its only group."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program, its arguments and what changes in the environment that it inherits."""

    argv: list[str]
    """The program's absolute path, then its arguments."""
    set: dict[str, str] = field(default_factory=dict)
    prepend: dict[str, list[str]] = field(default_factory=dict)
    """Paths that go before those the variable holds."""
    drop: list[str] = field(default_factory=list)
    user: User | None = None
    """For a program that refuses to run as root; None leaves the user as it is."""
    stop_signal: signal.Signals = signal.SIGTERM
    """Asks the program to stop soon."""


class Service(Protocol):
    """One server program: how to start it, how to see that it works, what it leaves behind."""

    name: str
    """Names its log file and its processes' mark."""
    port: int
    """Where it listens; the same after a restart, so that clients reconnect."""
    stop_grace_s: float
    """How long it may take to stop by itself."""

    def choose_port(self) -> None:
        """Takes another port: someone else had this one first."""

    def command(self) -> Command:
        """What to run, made anew for each start."""

    async def ready(self, pid: int) -> bool:
        """Whether this very process answers on the port; soon, and never raises for a refusal."""

    def healthy(self, pid: int) -> bool:
        """False when the process runs but can no longer do its work."""

    def clean(self) -> None:
        """Removes what a dead process of this service leaves behind."""
