"""Makes the data directory of an embedded PostgreSQL, which outlives the server's restarts."""

import os
import secrets
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keek_server.embedded.postgres_programs import give, run_as, runnable_programs, unprivileged_user
from keek_server.embedded.service import User
from keek_server.errors import SetupError

ROLE: Final = "keek"
"""The superuser's name; there is no other role."""
DATABASE: Final = "keek"
"""The database that is there from the start, and empty."""

_PASSWORD_BYTES = 16


@dataclass(frozen=True, slots=True)
class PostgresCluster:
    """A data directory, and who can work with it."""

    data: Path
    programs: Path
    """The `bin` folder of the PostgreSQL that made it."""
    user: User | None
    """Its owner, who the server runs as; None for who runs this program."""
    password: str = field(repr=False)
    """The role's. It is in no file."""


def make_cluster(directory: Path) -> PostgresCluster:
    """Makes a data directory with the database `keek`: UTF-8, in the C locale. Blocks for seconds.

    Clients need a password, since everyone on this machine reaches 127.0.0.1, and a superuser
    of PostgreSQL may run programs.

    Args:
        directory: The cluster's own, empty or new. As root it is given to the user that
            PostgreSQL runs as, who must be able to reach it.

    Raises:
        SetupError: PostgreSQL is missing, or cannot work there; says why.
    """
    user, password = unprivileged_user(), secrets.token_hex(_PASSWORD_BYTES)
    try:
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise SetupError(f"{directory} is not empty: PostgreSQL needs a directory of its own")
        give(directory, user)
        if run_as(
            user, ["/bin/sh", "-c", 'test -x "$0" -a -w "$0"', str(directory)], cwd=Path("/")
        ).returncode:
            raise SetupError(f"PostgreSQL's user cannot reach {directory}: give it a directory that all can")
        programs = runnable_programs(directory, user)
        cluster = PostgresCluster(directory / "data", programs, user, password)
        _initialise(cluster, password_file=directory / "password")
        _create_database(cluster)
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"cannot set up PostgreSQL in {directory}: {error}") from error
    return cluster


def _initialise(cluster: PostgresCluster, password_file: Path) -> None:
    try:
        handle = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(cluster.password)
        give(password_file, cluster.user)
        options = {
            "pgdata": str(cluster.data),
            "username": ROLE,
            "pwfile": str(password_file),
            "auth": "scram-sha-256",
            "encoding": "UTF8",
            "locale": "C",
        }
        # The server itself syncs. A machine that crashes while this runs starts anew anyway.
        flags = ["--no-sync", "--no-instructions"]
        _run(cluster, "initdb", [*(f"--{name}={value}" for name, value in options.items()), *flags])
    finally:
        password_file.unlink(missing_ok=True)


def _create_database(cluster: PostgresCluster) -> None:
    """In single-user mode, which needs neither a port nor a password."""
    arguments = ["--single", "-D", str(cluster.data), "-c", "exit_on_error=on", "template1"]
    _run(cluster, "postgres", arguments, text=f"CREATE DATABASE {DATABASE};\n")


def _run(cluster: PostgresCluster, program: str, arguments: list[str], text: str = "") -> None:
    command = [str(cluster.programs / program), *arguments]
    done = run_as(cluster.user, command, cwd=Path("/"), text=text)
    if done.returncode != 0:
        raise SetupError(f"{program} exited with code {done.returncode}. Its output:\n{done.stdout.strip()}")
