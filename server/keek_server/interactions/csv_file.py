"""A CSV file that grows with the log, and beside it how far it is. All calls block."""

import fcntl
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keek_server.errors import SetupError
from keek_server.files import sync, written_aside
from keek_server.interactions.csv_lines import CSV_HEADER
from keek_server.interactions.log import LogExtent


class Position(BaseModel):
    """How far a file is: what `FILE.position` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_id: str
    """The log that the file is written from."""
    seq: int = Field(ge=0)
    """Rows of the log up to here are in the file."""
    size: int = Field(ge=0)
    """Bytes of the file that count; what stands behind them was never finished."""
    tail: str = ""
    """What the row at `seq` is recognised by (`tail_of`); empty before the first, and in older files."""


class CsvFile:
    """One file, appended to by one process at a time.

    Lines reach the disk first and the position that counts them after; what a crash left between
    the two is cut off before anything is appended. So a line is in the file once, wherever its
    writer was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = path.with_name(f"{path.name}.position")
        self._lock_path = path.with_name(f"{path.name}.lock")
        self._lock: int | None = None

    def claim(self) -> bool:
        """Makes this the file's only writer; False while another one is.

        The kernel gives the claim back however the process ends.

        Raises:
            OSError: When the folder cannot be written to.
        """
        if self._lock is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._lock = lock
        return True

    def release(self) -> None:
        """Gives the claim back, if there is one."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def position(self, extent: LogExtent) -> Position:
        """How far the file is; makes a position for one that is not there yet.

        Raises:
            SetupError: When the file is not of this log, or nobody can tell; it is left as it is.
            OSError: When it cannot be read or written.
        """
        position = self._read_position()
        if position is None:
            self._refuse_foreign()
            # First of all, so that a file without a position is never one that a crash left.
            position = Position(log_id=extent.log_id, seq=0, size=0)
            self._write_position(position)
        if position.log_id != extent.log_id:
            raise SetupError(f"{self.path} was written from another database: {self._remedy()}")
        if position.seq > extent.last_seq:
            raise self.lost_rows()
        return position

    def begin(self, position: Position) -> Position:
        """Cuts off what was never finished; makes the file if there is none.

        Raises:
            SetupError: When the file has become shorter than it was.
            OSError: When it cannot be written.
        """
        return self.append(position, "" if position.size else CSV_HEADER, position.seq, position.tail)

    def append(self, position: Position, text: str, seq: int, tail: str) -> Position:
        """Adds lines, durably.

        Args:
            position: Where they belong.
            text: The lines.
            seq: The last row of the log that is among them.
            tail: What that row is recognised by.

        Raises:
            SetupError: When the file has become shorter than it was.
            OSError: When it cannot be written; the same again may succeed.
        """
        size = self._write_lines(position.size, text.encode())
        if not text:
            return position
        after = position.model_copy(update={"seq": seq, "size": size, "tail": tail})
        self._write_position(after)
        return after

    def lost_rows(self) -> SetupError:
        """What to raise when the log, restored from a backup, has not the rows that the file has."""
        return SetupError(f"{self.path} holds rows that the database does not: {self._remedy()}")

    def _write_lines(self, start: int, lines: bytes) -> int:
        flags = os.O_RDWR if start else os.O_RDWR | os.O_CREAT
        try:
            file = os.fdopen(os.open(self.path, flags, 0o644), "r+b")
        except FileNotFoundError:
            raise SetupError(f"{self.path} is gone: {self._remedy()}") from None
        with file:
            size = file.seek(0, os.SEEK_END)
            if size < start:
                raise SetupError(f"{self.path} is shorter than it was: {self._remedy()}")
            if size > start:
                file.truncate(start)
            file.seek(start)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        if not start:
            sync(self.path.parent)
        return start + len(lines)

    def _refuse_foreign(self) -> None:
        if self.path.exists() and self.path.stat().st_size:
            message = f"{self.path} is there already, and no {self._position.name} says what is in it"
            raise SetupError(f"{message}: {self._remedy()}")

    def _remedy(self) -> str:
        return (
            f"move it and {self._position.name} away to have it written anew, "
            "or name another file (KEEK_INTERACTION_CSV)"
        )

    def _read_position(self) -> Position | None:
        try:
            return Position.model_validate_json(self._position.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise SetupError(f"{self._position} is damaged: {self._remedy()}") from error

    def _write_position(self, position: Position) -> None:
        aside = self._position.with_name(f"{self._position.name}.tmp")
        with written_aside(self._position, aside) as file:
            file.write(position.model_dump_json().encode())
