"""MovieLens: every edition's own files give likes, views, genres and titles."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets import movielens
from keek_training.datasets.dataset import Dataset

LIKE, VIEW = InteractionKind.LIKE, InteractionKind.VIEW


def _events(dataset: Dataset) -> list[tuple[str, str, int, int]]:
    return [tuple(row.values()) for row in dataset.interactions.to_pylist()]


def _movies(dataset: Dataset) -> list[tuple[str, str, list[str]]]:
    return [(row["video_id"], row["title"], row["tags"]) for row in dataset.videos.to_pylist()]


def test_ml_1m(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n2::9::4::978300761\n")
    (tmp_path / "movies.dat").write_bytes(
        "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n"
        "1193::Misérables, Les (1995)::Drama\n".encode("latin-1")
    )
    dataset = movielens.read(tmp_path)
    assert dataset.problems == []
    assert _events(dataset) == [
        ("1", "1193", LIKE, 978_300_760_000_000),
        ("2", "9", LIKE, 978_300_761_000_000),
        ("1", "661", VIEW, 978_302_109_000_000),
    ]
    assert _movies(dataset) == [
        ("1193", "Misérables, Les (1995)", ["Drama"]),
        ("661", "James and the Giant Peach (1996)", ["Animation", "Children's", "Musical"]),
        ("9", "", []),
    ]


def test_ml_100k(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t242\t4\t891717742\n")
    flags = "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0"
    (tmp_path / "u.item").write_text(
        f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|{flags}\n"
        f"242|unknown||||1|{flags[2:].replace('1', '0')}\n"
    )
    dataset = movielens.read(tmp_path)
    assert dataset.problems == []
    assert _events(dataset) == [
        ("196", "242", VIEW, 881_250_949_000_000),
        ("186", "242", LIKE, 891_717_742_000_000),
    ]
    assert _movies(dataset) == [
        ("1", "Toy Story (1995)", ["Animation", "Children's", "Comedy"]),
        ("242", "unknown", []),
    ]


def test_ml_latest(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,3.5,9\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n3,X,(no genres listed)\n'
    )
    dataset = movielens.read(tmp_path)
    assert dataset.problems == []
    assert _events(dataset) == [("1", "3", VIEW, 9_000_000), ("1", "1", LIKE, 964_982_703_000_000)]
    assert _movies(dataset) == [
        ("1", "American President, The (1995)", ["Comedy", "Drama"]),
        ("3", "X", []),
    ]


def test_recbole_atomic_files(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n1\t1\t5\t5\n"
    )
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '1\t"Toy" Story\t1995\tAnimation Children\'s Comedy\n'
    )
    dataset = movielens.read(tmp_path)
    assert dataset.problems == []
    assert _events(dataset) == [("1", "1", LIKE, 5_000_000), ("196", "242", VIEW, 881_250_949_000_000)]
    assert _movies(dataset) == [
        ("1", '"Toy" Story', ["Animation", "Children's", "Comedy"]),
        ("242", "", []),
    ]


def test_sequences_keep_their_order_within_a_second(tmp_path: Path) -> None:
    rows = {
        "user": pa.array([2, 1, 1, 1], pa.int32()),
        "movie": pa.array([5, 30, 10, 20], pa.int32()),
        "pos": pa.array([0, 2, 0, 1], pa.int32()),
        "ts": [100, 100, 100, 100],
        "exact": [True] * 4,
    }
    pq.write_table(pa.table(rows), tmp_path / "ml1m_minus_last.parquet")
    (tmp_path / "movies.dat").write_text("10::Ten::Drama\n")
    dataset = movielens.read(tmp_path)
    assert dataset.problems == []
    assert [(video, kind, time_us) for user, video, kind, time_us in _events(dataset) if user == "1"] == [
        ("10", VIEW, 100_000_000),
        ("20", VIEW, 100_000_001),
        ("30", VIEW, 100_000_002),
    ]
    assert _movies(dataset)[0] == ("10", "Ten", ["Drama"])


def test_bad_lines_are_reported_with_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::2::5::9\n1::2::x::9\n1::2::5\n\n1::2::::9\n2::2::1::9\n")
    (tmp_path / "movies.dat").write_text("2::Two::Drama\n2::Two again::Drama\n")
    dataset = movielens.read(tmp_path)
    assert [(problem.file.name, problem.line, problem.reason) for problem in dataset.problems] == [
        ("movies.dat", 2, "the video '2' stands on line 1 already"),
        ("ratings.dat", 2, "rating 'x' is not a number"),
        ("ratings.dat", 3, "3 columns where 4 are expected"),
        ("ratings.dat", 5, "rating is empty"),
    ]
    assert dataset.interactions["user_id"].to_pylist() == ["1", "2"]


def test_ratings_alone_are_enough(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::2::5::9\n")
    assert _movies(movielens.read(tmp_path)) == [("2", "", [])]


def test_what_is_no_movielens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"holds none of ratings\.dat, u\.data"):
        movielens.read(tmp_path)
