"""MovieLens (https://grouplens.org/datasets/movielens): ratings of movies, as LIKEs and VIEWs.

A rating of 4 or more is a LIKE, any other a VIEW, as is one that the file does not tell.
Genres become tags. Layouts are recognised by the files in the folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.assemble import (
    assemble,
    bare_videos,
    interaction_table,
    video_table,
    with_unknown,
)
from keek_training.datasets.dataset import Dataset, Problem
from keek_training.datasets.parquet import read_parquet
from keek_training.datasets.parse import (
    MAX_TITLE_BYTES,
    parse_ids,
    parse_numbers,
    parse_tags,
    parse_text,
    parse_times,
)
from keek_training.datasets.raw import RawTable
from keek_training.datasets.rows import Rows
from keek_training.datasets.text import read_csv, read_split

LIKED_FROM = 4.0
"""The lowest rating that is a LIKE."""

_GENRES_100K = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]  # fmt: skip
_ITEM_100K = ["video_id", "title", "release_date", "video_release_date", "url", *_GENRES_100K]
_RATING = ["user_id", "video_id", "rating", "time"]
_NO_GENRE = "(no genres listed)"


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one edition writes its two files, as columns user_id, video_id, rating, time, title, tags."""

    ratings: str
    """The pattern of the file that tells this layout from others."""
    movies: str
    read_ratings: Callable[[Path], RawTable]
    read_movies: Callable[[Path], RawTable]
    genre_separator: str = "|"


def _renaming(names: dict[str, str]) -> Callable[[str], str]:
    return lambda name: names.get(name.strip().split(":")[0], name)


_ML_1M_MOVIE = ["video_id", "title", "tags"]
_CSV_NAMES = {"userId": "user_id", "movieId": "video_id", "timestamp": "time", "genres": "tags"}
_RECBOLE_NAMES = {
    "user_id": "user_id",
    "item_id": "video_id",
    "rating": "rating",
    "timestamp": "time",
    "movie_title": "title",
    "class": "tags",
    "genre": "tags",
}


def _recbole(required: list[str], optional: tuple[str, ...] = ()) -> Callable[[Path], RawTable]:
    return lambda file: read_csv(
        file, required, optional, delimiter="\t", quoting=False, rename=_renaming(_RECBOLE_NAMES)
    )


_ML_1M = _Layout(
    "ratings.dat",
    "movies.dat",
    lambda file: read_split(file, _RATING, "::"),
    lambda file: read_split(file, _ML_1M_MOVIE, "::"),
)
_LAYOUTS = (
    _ML_1M,
    _Layout(
        "u.data",
        "u.item",
        lambda file: read_split(file, _RATING, "\t"),
        lambda file: _with_genres(read_split(file, _ITEM_100K, "|")),
    ),
    _Layout(
        "ratings.csv",
        "movies.csv",
        lambda file: read_csv(file, _RATING, rename=_renaming(_CSV_NAMES)),
        lambda file: read_csv(file, ["video_id"], ("title", "tags"), rename=_renaming(_CSV_NAMES)),
    ),
    _Layout(
        "*.inter",
        "*.item",
        _recbole(["user_id", "video_id", "time"], ("rating",)),
        _recbole(["video_id"], ("title", "tags")),
        genre_separator=" ",
    ),
    _Layout(
        "*.parquet",
        "movies.dat",
        lambda file: _sequences(read_parquet(file, ["user", "movie", "pos", "ts"])),
        _ML_1M.read_movies,
    ),
)


def read(path: Path) -> Dataset:
    """Reads a folder of any layout; movies without metadata are kept bare.

    Raises:
        SetupError: When the folder holds none of the layouts, or a file lacks a column.
    """
    for layout in _LAYOUTS:
        if files := sorted(path.glob(layout.ratings)):
            break
    else:
        patterns = ", ".join(layout.ratings for layout in _LAYOUTS)
        raise SetupError(f"{path} holds none of {patterns}: no MovieLens")
    interactions, problems = _ratings(Rows(layout.read_ratings(files[0])))
    movies = sorted(path.glob(layout.movies))
    videos, faults = bare_videos(pa.array([], pa.string())), list[Problem]()
    if movies:
        videos, faults = _movies(Rows(layout.read_movies(movies[0])), layout.genre_separator)
    return assemble("movielens", with_unknown(videos, interactions), interactions, [*faults, *problems])


def _ratings(rows: Rows) -> tuple[pa.Table, list[Problem]]:
    user_ids, video_ids = parse_ids(rows, "user_id"), parse_ids(rows, "video_id")
    ratings = parse_numbers(rows, "rating")
    if "rating" in rows:
        rows.reject(np.isnan(ratings), "rating is empty")
    kinds = np.where(ratings >= LIKED_FROM, int(InteractionKind.LIKE), int(InteractionKind.VIEW))
    table = interaction_table(user_ids, video_ids, kinds.astype(np.int8), parse_times(rows, "time"))
    return table.filter(pa.array(rows.good)), rows.problems()


def _movies(rows: Rows, genre_separator: str) -> tuple[pa.Table, list[Problem]]:
    genres = parse_tags(rows, "tags", genre_separator)
    videos = video_table(
        rows,
        video_ids=parse_ids(rows, "video_id"),
        titles=parse_text(rows, "title", MAX_TITLE_BYTES),
        tags=[[genre for genre in own if genre != _NO_GENRE] for own in genres],
    )
    return videos, rows.problems()


def _with_genres(raw: RawTable) -> RawTable:
    """Turns MovieLens 100K's column a genre, of 0 and 1, into lists."""
    flags = [raw.table[genre].to_pylist() for genre in _GENRES_100K]
    lists = [
        [genre for genre, flag in zip(_GENRES_100K, row, strict=True) if flag == "1" and genre != "unknown"]
        for row in zip(*flags, strict=True)
    ]
    table = raw.table.append_column("tags", pa.array(lists, pa.list_(pa.string())))
    return RawTable(raw.file, table, raw.lines, raw.problems)


def _sequences(raw: RawTable) -> RawTable:
    """Orders rows by their place in each user's sequence, which breaks ties of whole seconds.

    Ties get a microsecond each, so that whoever sorts by time alone finds the same order.
    """
    columns = {name: raw.table[name].to_numpy() for name in ("user", "movie", "pos", "ts")}
    order = np.lexsort((columns["pos"], columns["ts"], columns["user"]))
    users, seconds = columns["user"][order], columns["ts"][order].astype(np.int64)
    table = pa.table(
        {
            "user_id": users,
            "video_id": columns["movie"][order],
            "time": pa.array(seconds * 1_000_000 + _places_in_run(users, seconds)).cast(pa.timestamp("us")),
        }
    )
    return RawTable(raw.file, table, raw.lines[order], raw.problems)


def _places_in_run(*columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, 2, ... within each run of rows that are equal in all columns."""
    count = len(columns[0])
    starts = np.zeros(count, np.bool_)
    starts[:1] = True
    for column in columns:
        starts[1:] |= column[1:] != column[:-1]
    places = np.arange(count)
    run: npt.NDArray[np.int64] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return run
