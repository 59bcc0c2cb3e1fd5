"""Parquet files as raw tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keek_server.errors import SetupError
from keek_training.datasets.raw import RawTable, choose_columns


def read_parquet(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> RawTable:
    """Reads the wanted columns; a row's line is its 1-based number.

    Raises:
        SetupError: When the file is missing, is no Parquet, or lacks a required column.
    """
    try:
        present = pq.read_schema(path).names
        columns = choose_columns(path, present, required, optional)
        table = pq.read_table(path, columns=list(columns))
        table.validate(full=True)
    except FileNotFoundError as error:
        raise SetupError(f"cannot read {path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise SetupError(f"{path} is not a readable Parquet file: {error}") from error
    return RawTable(path, table, np.arange(1, table.num_rows + 1, dtype=np.int64))
