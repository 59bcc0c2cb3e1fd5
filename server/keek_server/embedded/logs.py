"""The children's log files: one a run, the run before kept beside it, the end shown to people."""

from pathlib import Path

_TAIL_LINES = 15
_TAIL_WIDTH = 300


def new_log(path: Path) -> Path:
    """Makes room for a run's log; that of the run before goes on as `NAME.1`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))
    return path


def log_tail(path: Path, start: int) -> str:
    """The last lines of a log, of those after byte `start`, each cut to a readable length."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    lines = [line[:_TAIL_WIDTH] for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:])
