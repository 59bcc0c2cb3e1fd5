"""`keek-train evaluate`: a real run, exported, measured through ONNX Runtime and the index, beside Keras."""

import argparse
import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from keek_server.errors import SetupError
from keek_server.interactions.log import InteractionLog
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.towers.contract import USER_TOWER, VIDEO_TOWER
from keek_training.config import TrainConfig
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.store import import_dataset
from keek_training.datasets.synth import parse_config, synthesise
from keek_training.datasets.write import write_parquet
from keek_training.evaluation.baselines.popular import Popular
from keek_training.evaluation.cases import Cases, cases_of
from keek_training.evaluation.commands import add_arguments, run_evaluate
from keek_training.evaluation.evaluate import MODEL, Evaluation, evaluate
from keek_training.evaluation.ranking import DEPTH
from keek_training.evaluation.served import corpus_of, onnx_tower, user_vectors
from keek_training.evaluation.splits import Split, leave_last_out
from keek_training.features import catalogue_of, sequences_of
from keek_training.publishing.source import TowerSource
from keek_training.run_data import DATA_SPEC, read_training_data
from keek_training.runs import Run
from keek_training.validation import serving_inputs
from keek_training.windows import Windows

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = TrainConfig.of(
    {
        "towers": {"history_length": 8, "blocks": 1, "feed_forward": 16, "content_width": 16},
        "epochs": 2,
        "validation_users": 20,
    }
)


@pytest.fixture(scope="module")
def whole() -> Dataset:
    return synthesise(parse_config("users=120,videos=300,interactions=4000,seed=5,end=2026-01-01"))


@pytest.fixture(scope="module")
def split(whole: Dataset) -> Split:
    return leave_last_out(whole)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def run(split: Split, settings: Settings) -> Run:
    """Trained on the split's training, which lies in files, and exported."""
    from keek_training.export import export
    from keek_training.train_run import train_run

    folder = settings.data_dir / "table"
    folder.mkdir()
    write_parquet(split.training, folder)
    own = Run.named("measured", settings)
    train_run(split.training, CONFIG, own, read={DATA_SPEC: f"table:{folder}"})
    export(own)
    return own


@pytest.fixture(scope="module")
def evaluation(split: Split, run: Run, settings: Settings) -> Evaluation:
    targets = replace(
        split.targets,
        user_ids=pa.concat_arrays([split.targets.user_ids, pa.array(["nobody"])]),
        video_ids=pa.concat_arrays([split.targets.video_ids, pa.array(["v1"])]),
        times_us=np.append(split.targets.times_us, split.targets.times_us[-1]),
    )
    source = TowerSource.of_run(run)
    return evaluate(split.training, targets, source=source, baselines=[Popular()], settings=settings)


def _windows(cases: Cases, whole: Dataset, sequences_users: dict[str, int], offsets: np.ndarray) -> Windows:
    """The request of each case in the whole data: the row that was held out."""
    lengths = [cases.known.offsets[user + 1] - cases.known.offsets[user] for user in cases.users]
    users = np.array([sequences_users[user_id] for user_id in cases.user_ids])
    starts = offsets[users]
    ends = starts + np.array(lengths)
    return Windows(users, starts, ends, ends - 1)


def test_users_get_the_vectors_that_training_validates_with(
    whole: Dataset, split: Split, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keek_training.towers import VideoTower, user_tower_of
    from keek_training.weights import load_weights

    # Training counts ages to the microsecond.
    monkeypatch.setattr("keek_server.feed.history.AGE_STEP", 1e-9)
    source = TowerSource.of_run(run)
    cases = cases_of(split.training, split.targets)
    corpus = corpus_of(split.training, onnx_tower(source, VIDEO_TOWER))
    found = user_vectors(cases, corpus, onnx_tower(source, USER_TOWER), source.history_length)

    config = TrainConfig.load(run.config)
    catalogue = catalogue_of(whole)
    sequences = sequences_of(whole, catalogue, config.kind_weights)
    video_tower = VideoTower(config.towers, 0)
    videos = np.asarray(video_tower(catalogue.features))
    load_weights(video_tower, run.weights("video_tower"))
    videos = np.asarray(video_tower(catalogue.features))
    assert corpus.vectors == pytest.approx(videos, abs=1e-4)
    by_id = {user_id: place for place, user_id in enumerate(sequences.user_ids)}
    windows = _windows(cases, whole, by_id, sequences.offsets)
    inputs = serving_inputs(sequences, windows, videos, config.towers.history_length)
    user_tower = user_tower_of(config.towers, 0)
    user_tower(inputs)
    load_weights(user_tower, run.weights("user_tower"))
    assert found == pytest.approx(np.asarray(user_tower(inputs)), abs=1e-3)
    assert np.abs(found).max() > 0.1


def test_what_is_served_is_what_exact_search_finds(evaluation: Evaluation) -> None:
    assert evaluation.served is not None
    index = evaluation.index_figures(evaluation.served)
    assert index["kind"] == "exact"
    assert index["within_1_percent"]
    assert index["same_top_10"] == 1


def test_an_index_of_lists_is_measured_as_it_is(split: Split, run: Run, settings: Settings) -> None:
    own = settings.model_copy(update={"index_kind": "ivf_flat"})
    source = TowerSource.of_run(run)
    found = evaluate(split.training, split.targets, source=source, baselines=[], settings=own)
    index = found.as_dict()["index"]
    assert index["kind"] == "ivf_flat"
    assert index["recall_at_100"] >= 0.98
    assert index["same_top_10"] > 0.95


def test_nothing_that_was_seen_is_ranked_and_every_ranking_is_full(evaluation: Evaluation) -> None:
    cases = evaluation.cases
    for ranked in evaluation.rankings.values():
        for row, found in enumerate(ranked):
            own = cases.seen.videos[cases.seen.offsets[row] : cases.seen.offsets[row + 1]]
            assert not np.isin(found, own).any()
            assert len(np.unique(found[found >= 0])) == min(DEPTH, 300 - len(own))


def test_who_is_new_gets_the_popular_list_as_in_serving(evaluation: Evaluation) -> None:
    (new,) = np.flatnonzero(evaluation.cases.is_new_user)
    assert evaluation.cases.user_ids[new] == "nobody"
    counts = evaluation.cases.training_counts
    shown = counts[evaluation.rankings[MODEL][new][:10]]
    # The list counts interactions and these are users: the head is about the same.
    assert shown.min() >= np.sort(counts)[-40]


def test_the_model_is_better_than_chance(evaluation: Evaluation) -> None:
    figures = evaluation.figures(MODEL)
    assert figures["recall@50"] > 1.2 * 50 / 300
    low, high = figures["intervals"]["recall@50"]
    assert low < figures["recall@50"] < high
    assert figures["new_users_recall@10"] in {0, 1}


@pytest.fixture
def files(split: Split, tmp_path: Path) -> Path:
    own = split.targets
    times = pa.array(own.times_us).cast(pa.timestamp("us"))
    table = pa.table({"user_id": own.user_ids, "video_id": own.video_ids, "timestamp": times})
    pq.write_table(table, tmp_path / "targets.parquet")
    return tmp_path


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser.add_subparsers(required=True))
    return parser.parse_args(["evaluate", *words])


def test_the_command_prints_json_and_writes_a_page_that_needs_nothing_else(
    run: Run, settings: Settings, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", run.name, "--targets", str(files / "targets.parquet")]
    page = files / "report.html"
    code = run_evaluate(
        _parsed(*words, "--baselines", "popular,markov", "--json", "--report", str(page)), settings
    )
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    assert {"model", "popular", "markov", "tuned", "index", "model_less_baseline"} <= result.keys()
    assert result["tuned"]["markov"].keys() == {"window", "power"}
    assert result["targets_before_known"] == 0
    assert result["index"]["within_1_percent"]
    html = page.read_text("utf-8")
    assert html.count("data:image/png;base64,") == 5
    assert 'src="http' not in html
    assert "markov" in html


def test_the_command_takes_more_history_and_reports_bad_rows(
    run: Run, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("user_id,video_id\nnobody,v1\nnobody,v2\nnobody,gone\n,v3\n")
    (tmp_path / "h.csv").write_text("user_id,video_id,kind\nnobody,v2,like\nnobody,v4,view\n")
    words = ["--run", run.name, "--targets", str(tmp_path / "t.csv"), "--history", str(tmp_path / "h.csv")]
    assert run_evaluate(_parsed(*words, "--baselines", "none", "--json"), settings) == 1
    output = capsys.readouterr()
    assert "t.csv:5: user_id is empty" in output.err
    result = json.loads(output.out)
    assert (result["users"], result["new_users"]) == (1, 0)
    assert (result["targets_seen"], result["targets_unknown"], result["problems"]) == (1, 1, 1)
    assert run_evaluate(_parsed(*words, "--baselines", "popular"), settings) == 1
    assert "missed: 1 targets that are not in the catalogue" in capsys.readouterr().out


def test_the_command_says_what_it_lacks(run: Run, settings: Settings, files: Path, tmp_path: Path) -> None:
    targets = str(files / "targets.parquet")
    with pytest.raises(SetupError, match="run 'nothing' is not exported"):
        run_evaluate(_parsed("--run", "nothing", "--targets", targets), settings)
    with pytest.raises(SetupError, match="no baseline 'magic'"):
        run_evaluate(_parsed("--run", run.name, "--targets", targets, "--baselines", "magic"), settings)
    report = str(tmp_path / "none" / "r.html")
    with pytest.raises(SetupError, match="its folder does not exist"):
        run_evaluate(_parsed("--run", run.name, "--targets", targets, "--report", report), settings)


def test_a_run_on_the_log_is_measured_with_what_it_had_read(whole: Dataset, tmp_path: Path) -> None:
    own = Settings(data_dir=tmp_path)
    run = Run.named("logged", own)
    run.start()

    async def fill() -> tuple[str, int]:
        async with open_database(own) as database:
            await import_dataset(database, whole)
            extent = await InteractionLog(database).extent()
            return extent.log_id, extent.last_seq

    log_id, last_seq = asyncio.run(fill())
    log = {"log_id": log_id, "after_seq": 0, "last_seq": last_seq - 100}
    run.write_metrics({"log": log, "clip_model": ""}, [])
    found = read_training_data(run, None, own)
    assert found.interactions.num_rows == whole.interactions.num_rows - 100
    newest = whole.interactions["event_time_us"][-100].as_py()
    assert pc.max(found.interactions["event_time_us"]).as_py() <= newest
    run.write_metrics({}, [])
    with pytest.raises(SetupError, match="does not say what it was trained on"):
        read_training_data(run, None, own)


def test_users_as_if_they_were_new_are_ranked_through_the_same_path(
    evaluation: Evaluation, run: Run, split: Split
) -> None:
    lengths = [own.length for own in evaluation.cold]
    assert lengths == [1, 3, 10]
    one = evaluation.cold[0]
    source = TowerSource.of_run(run)
    corpus = corpus_of(split.training, onnx_tower(source, VIDEO_TOWER))
    users = user_vectors(one.cases, corpus, onnx_tower(source, USER_TOWER), source.history_length)
    # A history of one view: what ranks is the tower's vector of it, and nothing that was met is found.
    scores = users[:20] @ np.asarray(corpus.vectors).T
    for row in range(20):
        own = one.cases.seen.videos[one.cases.seen.offsets[row] : one.cases.seen.offsets[row + 1]]
        scores[row, own] = -np.inf
        assert one.rankings[MODEL][row, 0] == scores[row].argmax()
    figures = evaluation.as_dict()["cold_start"]["history_3"]
    assert figures["users"] == len(evaluation.cold[1].cases)
    low, high = figures[MODEL]["intervals"]["recall@10"]
    assert low <= figures[MODEL]["recall@10"] <= high
    assert 0 <= figures["popular"]["whole_history"]["ndcg@10"] <= 1
