"""The corpus of broken models: each is broken in the way that it says, and so is refused for that reason."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from benchmarks.broken_graphs import loops_for, make_slow
from benchmarks.broken_models import BrokenModel, broken_models
from benchmarks.rotated_towers import write_rotated
from benchmarks.tower_files import TowerFiles, Towers
from gate_towers import PatientLimits, slow, video_tower

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.settings import Settings
from keek_server.towers.contract import USER_TOWER
from keek_server.towers.features import Tensors, video_features
from keek_training.gates.examine import examine
from keek_training.gates.preflight import LiveTowers, preflight
from keek_training.gates.verdict import RefusedError, failures
from keek_training.golden import golden_users, golden_videos
from keek_training.publishing.source import DEFAULT_HISTORY_LENGTH, TowerSource

SETTINGS = Settings(data_dir=Path("unused"))
BROKEN = {broken.name: broken for broken in broken_models()}
# Their files show nothing: it takes the corpus, or the log.
SHOWN_LATER = {"infinite-for-one-video", "fails-for-one-video", "quality-destroyed", "recall-destroyed"}


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> TowerFiles:
    """Its user tower takes as long as a real one."""
    files = TowerFiles.within(tmp_path_factory.mktemp("good"))
    onnx.save(slow(1), files.users)
    onnx.save(video_tower(), files.videos)
    return files


@pytest.fixture(scope="module")
def good(good_files: TowerFiles) -> Towers:
    return Towers.read(good_files)


def refusal(files: TowerFiles, live: TowerFiles) -> str:
    """What preflight says; empty when it finds nothing."""
    source = TowerSource.of_files(files.users, files.videos)
    serving = LiveTowers(live.users, live.videos, DEFAULT_HISTORY_LENGTH)
    results = preflight(source, serving, SETTINGS, limits=PatientLimits(cpu_s=5))
    return str(RefusedError(results)) if failures(results) else ""


def videos_of(files: TowerFiles, inputs: Tensors) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(files.videos, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def one_video(video_id: str) -> Tensors:
    return video_features([video_id], ["o1"], [["cats"]], [10.0])


def test_there_are_many_and_each_has_a_name_and_a_reason_of_its_own() -> None:
    assert len(BROKEN) == len(list(broken_models())) >= 14
    assert all(broken.reasons for broken in BROKEN.values())


def test_the_good_pair_passes_and_rotated_too(good_files: TowerFiles, good: Towers, tmp_path: Path) -> None:
    assert refusal(good_files, good_files) == ""
    assert refusal(write_rotated(good, 1, tmp_path), good_files) == ""


@pytest.mark.parametrize(
    "broken", [BROKEN[name] for name in BROKEN if name not in SHOWN_LATER], ids=lambda b: b.name
)
def test_it_is_refused_for_its_reason_by_its_files_alone(
    good_files: TowerFiles, good: Towers, tmp_path: Path, broken: BrokenModel
) -> None:
    message = refusal(broken.write(good, tmp_path), good_files)
    assert broken.is_refused_rightly(message), message


@pytest.mark.parametrize("name", sorted(SHOWN_LATER))
def test_it_passes_what_golden_inputs_can_show(
    good_files: TowerFiles, good: Towers, tmp_path: Path, name: str
) -> None:
    assert refusal(BROKEN[name].write(good, tmp_path), good_files) == ""


def test_one_video_alone_gets_an_infinite_vector(good: Towers, tmp_path: Path) -> None:
    files = BROKEN["infinite-for-one-video"].write(good, tmp_path)
    assert np.isinf(videos_of(files, one_video("v500"))).all()
    np.testing.assert_array_equal(
        videos_of(files, golden_videos()), videos_of(good.write(tmp_path), golden_videos())
    )


def test_one_video_alone_ends_a_batch(good: Towers, tmp_path: Path) -> None:
    files = BROKEN["fails-for-one-video"].write(good, tmp_path)
    assert np.isfinite(videos_of(files, one_video("v501"))).all()
    with pytest.raises(Exception, match="out of data bounds"):
        videos_of(files, one_video("v500"))


def test_an_index_cannot_tell_videos_apart_that_all_score_the_same(
    good: Towers, good_files: TowerFiles, tmp_path: Path
) -> None:
    recalls = []
    for files in (good_files, BROKEN["recall-destroyed"].write(good, tmp_path)):
        users = examine(files.users, USER_TOWER, golden_users(DEFAULT_HISTORY_LENGTH), is_timed=False).vectors
        assert users is not None
        ids = [f"v{i}" for i in range(600)]
        videos = videos_of(files, video_features(ids, ids, [["cats"]] * 600, [10.0] * 600))
        _, report = build_index(videos, np.asarray(users), IndexOptions(exact_below=0, recall_target=0.99))
        recalls.append(report.recall_at_100)
    assert recalls[1] < SETTINGS.gate_recall <= recalls[0]


def test_quality_is_destroyed_by_the_user_tower_alone(
    good_files: TowerFiles, good: Towers, tmp_path: Path
) -> None:
    files = BROKEN["quality-destroyed"].write(good, tmp_path)
    assert files.videos.read_bytes() == good_files.videos.read_bytes()
    users = golden_users(DEFAULT_HISTORY_LENGTH)
    before, after = (examine(each.users, USER_TOWER, users).vectors for each in (good_files, files))
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(
        np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1), rtol=1e-4, atol=1e-6
    )
    assert np.abs(before - after).max() > 0.1


def test_a_slow_tower_answers_as_before_and_is_many_times_slower(
    good_files: TowerFiles, good: Towers, tmp_path: Path
) -> None:
    model = good.users()
    make_slow(model, loops_for(good.users(), times=50))
    files = good.write(tmp_path, users=model)
    inputs = golden_users(DEFAULT_HISTORY_LENGTH)
    before, after = (examine(each.users, USER_TOWER, inputs) for each in (good_files, files))
    assert before.vectors is not None
    assert after.vectors is not None
    np.testing.assert_allclose(before.vectors, after.vectors, atol=1e-5)
    assert before.ms is not None
    assert after.ms is not None
    assert after.ms > 5 * before.ms


def test_each_is_a_change_of_the_good_pair_and_the_same_every_time(good: Towers, tmp_path: Path) -> None:
    names = [name for name in BROKEN if name not in {"50-times-slower", "pipe", "too-large"}]
    for name in names:
        folders = [tmp_path / name / str(i) for i in range(2)]
        for folder in folders:
            folder.mkdir(parents=True)
        first, second = (BROKEN[name].write(good, folder) for folder in folders)
        content = [each.read_bytes() for each in (first.users, first.videos)]
        assert content == [each.read_bytes() for each in (second.users, second.videos)]
        assert content != [good.users().SerializeToString(), good.videos().SerializeToString()]
