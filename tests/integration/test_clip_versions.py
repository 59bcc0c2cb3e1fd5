"""A release's CLIP in a real Triton: published once, used by later releases, dropped when none does."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from embedded_towers import user_tower, video_tower
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from keek_server.embedded import EmbeddedStack
from keek_server.errors import SetupError
from keek_server.settings import Settings
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.clip_record import ClipRecord
from keek_server.towers.contract import CLIP_IMAGE, CLIP_TEXT, USER_TOWER, VIDEO_TOWER, TowerContract
from keek_training.publishing.clip import ClipSource
from keek_training.publishing.kept import KeptRelease, ReleaseModels
from keek_training.publishing.models import publish_models
from keek_training.publishing.repository import load_models, prune_versions
from keek_training.publishing.source import TowerSource
from keek_training.runs import Run

pytestmark = pytest.mark.usefixtures("unhurried_triton")

RECORD = ClipRecord(
    clip_model="sum/untrained@0123456789ab",
    model="sum",
    pretrained=None,
    untrained=True,
    image_size=2,
    resize_mode="squash",
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    context_length=77,
    start_token=1,
    end_token=2,
    pad_token=0,
    dynamic_length=True,
)


def encoder(contract: TowerContract, scale: float, *, size: int = 512) -> ModelProto:
    """The sum over an input, times `scale`, in every number of the vector."""
    (spec,) = contract.inputs
    types = {np.uint8: TensorProto.UINT8, np.int32: TensorProto.INT32}
    shape = ["batch", *(dim if dim > 0 else f"free_{place}" for place, dim in enumerate(spec.shape))]
    nodes = [
        helper.make_node("Flatten", [spec.name], ["flat"]),
        helper.make_node("Cast", ["flat"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["float", "one"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "scales"], [contract.output.name]),
    ]
    graph = helper.make_graph(
        nodes,
        contract.model,
        [helper.make_tensor_value_info(spec.name, types[spec.dtype], shape)],
        [helper.make_tensor_value_info(contract.output.name, TensorProto.FLOAT, ["batch", size])],
        [
            numpy_helper.from_array(np.int64([1]), "one"),
            numpy_helper.from_array(np.full((1, size), scale, np.float32), "scales"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def clip_source(folder: Path, *, image: float = 1.0, text: float = 1.0, text_size: int = 512) -> ClipSource:
    folder.mkdir()
    RECORD.save(folder)
    (folder / "tokenizer.json").write_text("{}")
    source = ClipSource(RECORD, folder, folder / "image.onnx", folder / "text.onnx")
    save(encoder(CLIP_IMAGE, image), source.image)
    save(encoder(CLIP_TEXT, text, size=text_size), source.text)
    return source


def kept(models: ReleaseModels, release_id: str) -> KeptRelease:
    return KeptRelease(release_id=release_id, **dict(models))


@pytest.fixture(scope="module")
async def settings(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Settings]:
    """Of a stack of this file's own."""
    async with EmbeddedStack(settings_in(tmp_path_factory.mktemp("publishing"))) as stack:
        yield stack.settings


@pytest.fixture(scope="module")
async def towers(settings: Settings) -> AsyncIterator[TowerClient]:
    async with open_towers(settings) as towers:
        yield towers


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TowerSource:
    run = Run(tmp_path_factory.mktemp("run"))
    save(user_tower(USER_TOWER, 1.0), run.user_tower)
    save(video_tower(VIDEO_TOWER), run.video_tower)
    return TowerSource.of_files(run.user_tower, run.video_tower)


async def answers(towers: TowerClient, version: int) -> float:
    """What a version of the image encoder makes of a picture of ones."""
    pixels = np.ones((2, 3, 2, 2), np.uint8)
    vectors = await towers.vectors(CLIP_IMAGE, version, {"pixels": pixels}, deadline_s=30.0)
    assert vectors.shape == (2, 512)
    return float(vectors[1, 511])


async def test_a_clip_is_published_once_and_stays_as_long_as_a_release_uses_it(
    settings: Settings, towers: TowerClient, source: TowerSource, tmp_path: Path
) -> None:
    clip = clip_source(tmp_path / "a")
    first = await publish_models(source, clip, 1, [], settings)
    assert first.clip is not None
    assert await answers(towers, 1) == 12.0

    second = await publish_models(source, clip, 2, [kept(first, "r1")], settings)
    assert second.clip == first.clip
    assert second.user_tower.version == 2
    assert not await towers.has(CLIP_IMAGE, 2)

    changed = clip_source(tmp_path / "b", image=2.0)
    third = await publish_models(source, changed, 3, [kept(second, "r2")], settings)
    assert third.clip is not None
    assert (third.clip.image.version, third.clip.text.version) == (3, 1)
    assert [await answers(towers, version) for version in (1, 3)] == [12.0, 24.0]

    fourth = await publish_models(source, changed, 4, [kept(third, "r3")], settings)
    assert fourth.clip == third.clip
    # As after each release: what none uses goes, and the next load has Triton drop it.
    prune_versions(settings.model_repository, [third.by_name, fourth.by_name], 4)
    await load_models(settings, fourth.by_name)
    assert not await towers.has(CLIP_IMAGE, 1)
    assert await towers.has(CLIP_TEXT, 1)
    assert not (settings.model_repository / CLIP_IMAGE.model / "1").exists()

    without = await publish_models(source, None, 5, [kept(fourth, "r4")], settings)
    assert without.clip is None
    assert await answers(towers, 3) == 24.0


async def test_an_encoder_that_triton_refuses_is_taken_out_and_the_live_one_keeps_serving(
    settings: Settings, towers: TowerClient, source: TowerSource, tmp_path: Path
) -> None:
    live = await publish_models(source, clip_source(tmp_path / "good", image=3.0), 11, [], settings)
    broken = clip_source(tmp_path / "broken", image=4.0, text_size=256)
    with pytest.raises(SetupError, match=r"Triton does not load clip_text: .*clip_vector has shape"):
        await publish_models(source, broken, 12, [kept(live, "r11")], settings)
    assert await answers(towers, 11) == 36.0
    assert await towers.has(CLIP_TEXT, 11)
    for model in live.by_name:
        assert not (settings.model_repository / model / "12").exists()
