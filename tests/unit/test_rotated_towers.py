"""Rotated towers score as the original does among themselves, and mean nothing to each other."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from benchmarks.rotated_towers import rotation, write_rotated
from benchmarks.tower_files import TowerFiles, Towers
from gate_towers import slow, tag_tower, video_tower

from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import Tensors, user_features
from keek_training.golden import golden_videos

Floats = npt.NDArray[np.float32]

RNG = np.random.default_rng(17)
HISTORY_ROWS = [[0, 1, 2], [5], [], [9, 4, 4, 30]]


def answers(path: Path, tensors: Tensors) -> Floats:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, tensors)[0])


class Release:
    """What serving makes of a pair: vectors of videos, and of users by the vectors of what they met."""

    def __init__(self, files: TowerFiles) -> None:
        self.files = files
        self.videos = answers(files.videos, golden_videos())
        histories = [self.videos[rows] for rows in HISTORY_ROWS]
        kinds = [np.full(len(rows), InteractionKind.LIKE, np.int32) for rows in HISTORY_ROWS]
        ages = [np.zeros(len(rows), np.float32) for rows in HISTORY_ROWS]
        users = user_features([f"u{i}" for i in range(len(histories))], histories, kinds, ages)
        self.users = answers(files.users, users)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    """The user tower has a loop, whose body sees the names around it."""
    files = TowerFiles.within(tmp_path_factory.mktemp("original"))
    onnx.save(slow(2), files.users)
    onnx.save(video_tower(), files.videos)
    return Towers.read(files)


@pytest.fixture(scope="module")
def original(towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(towers.write(tmp_path_factory.mktemp("same")))


@pytest.fixture(scope="module")
def rotated(towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    folders = [tmp_path_factory.mktemp(f"rotated-{seed}") for seed in (1, 2)]
    return [Release(write_rotated(towers, seed, folder)) for seed, folder in enumerate(folders, 1)]


def test_a_rotation_keeps_lengths_and_is_the_same_for_a_seed() -> None:
    q = rotation(3)
    np.testing.assert_allclose(q @ q.T, np.eye(DIMENSION), atol=1e-6)
    np.testing.assert_array_equal(q, rotation(3))
    assert np.abs(q - rotation(4)).max() > 0.1


def test_within_a_rotation_all_scores_stay(original: Release, rotated: list[Release]) -> None:
    expected = original.users @ original.videos.T
    for release in rotated:
        assert np.abs(release.videos - original.videos).max() > 0.1
        np.testing.assert_allclose(release.users @ release.videos.T, expected, rtol=1e-4, atol=1e-4)


def test_a_user_tower_with_the_videos_of_another_rotation_gives_other_scores(
    original: Release, rotated: list[Release]
) -> None:
    known = [i for i, rows in enumerate(HISTORY_ROWS) if rows]
    expected = (original.users @ original.videos.T)[known]
    for users, videos in ((0, 1), (1, 0)):
        mixed = rotated[users].users[known] @ rotated[videos].videos.T
        assert abs(np.corrcoef(mixed.ravel(), expected.ravel())[0, 1]) < 0.3
        assert np.mean(np.abs(mixed - expected)) > 0.5 * expected.std()


def test_another_rotation_of_the_original_does_not_grow_the_graph(rotated: list[Release]) -> None:
    for tower in ("users", "videos"):
        first, second = (onnx.load(getattr(release.files, tower)) for release in rotated)
        assert [node.op_type for node in first.graph.node] == [node.op_type for node in second.graph.node]
        assert len(first.graph.initializer) == len(second.graph.initializer)


def test_what_is_rotated_already_is_not_rotated_again(rotated: list[Release], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="edit the original"):
        write_rotated(Towers.read(rotated[0].files), 3, tmp_path)


def test_rotated_towers_are_whole_models_that_keep_their_inputs(
    towers: Towers, rotated: list[Release]
) -> None:
    for release in rotated:
        for path, good in ((release.files.users, towers.users()), (release.files.videos, towers.videos())):
            model = onnx.load(path)
            onnx.checker.check_model(model, full_check=True)
            assert list(model.graph.input) == list(good.graph.input)
            assert list(model.graph.output) == list(good.graph.output)


def test_a_tower_that_reads_tags_is_rotated_as_well(towers: Towers, tmp_path: Path) -> None:
    table = RNG.normal(size=(97, DIMENSION)).astype(np.float32)
    before = Towers.read(towers.write(tmp_path, videos=tag_tower(table)))
    plain = Release(before.write(tmp_path))
    turned = Release(write_rotated(before, 8, tmp_path))
    np.testing.assert_allclose(turned.videos, plain.videos @ rotation(8), atol=1e-5)
