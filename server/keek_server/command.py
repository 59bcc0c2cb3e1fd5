"""What a subcommand of `keek-server` is."""

import argparse
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from keek_server.settings import Settings


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand."""

    help: str
    run: Callable[[argparse.Namespace, Settings], Coroutine[Any, Any, None]]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _parser: None
    serves: bool = False
    """Runs until it is stopped, which then is no failure."""
