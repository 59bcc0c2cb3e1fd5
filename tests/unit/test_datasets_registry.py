"""Data sets by name, and what is said when the name leads nowhere."""

from pathlib import Path

import pytest

from keek_server.errors import SetupError
from keek_training.datasets.registry import open_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos.csv").write_text("video_id,tags,duration,owner\nv1,,1,o1\n")
    (tmp_path / "interaction_log.csv").write_text("user_id,video_id,action,timestamp\nu1,v1,like,1\n")
    (tmp_path / "interactions.csv").write_text("user_id,video_id,action,timestamp\nu1,v1,like,1\n")
    (tmp_path / "ratings.dat").write_text("1::2::5::9\n")
    (tmp_path / "log_standard_x.csv").write_text(
        "user_id,video_id,time_ms,is_like,is_forward,is_hate,long_view\n1,2,3,0,0,0,1\n"
    )
    return tmp_path


@pytest.mark.parametrize("name", ["prototype", "movielens", "kuairand"])
def test_a_folder_is_read_by_the_reader_that_is_named(folder: Path, name: str) -> None:
    dataset = open_dataset(f"{name}:{folder}")
    assert dataset.name == name
    assert dataset.interactions.num_rows == 1


def test_a_table_takes_a_mapping(folder: Path) -> None:
    columns = {"kind": "action", "event_time": "timestamp"}
    assert open_dataset(f"table:{folder}", columns=columns).interactions.num_rows == 1


def test_synthetic_data_is_made_in_memory() -> None:
    dataset = open_dataset("synth:videos=20,users=5,interactions=30")
    assert (dataset.name, dataset.videos.num_rows, dataset.interactions.num_rows) == ("synth", 20, 30)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kuairnd:/data", "no data set format 'kuairnd'; a data set is FORMAT:PATH with kuairand, movielens"),
        ("", "no data set format ''"),
        ("movielens", "movielens needs a folder: movielens:PATH"),
        ("movielens:/no/such/folder", "/no/such/folder is no folder"),
        ("synth:videos=x", "'videos=x' does not say a number"),
    ],
)
def test_a_name_that_leads_nowhere_is_explained(spec: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        open_dataset(spec)


def test_options_of_other_formats_are_refused(folder: Path) -> None:
    with pytest.raises(SetupError, match="a column mapping is for table:PATH"):
        open_dataset(f"prototype:{folder}", columns={"user_id": "uid"})
    with pytest.raises(SetupError, match="a part is for kuairand:PATH"):
        open_dataset(f"prototype:{folder}", part="all")
