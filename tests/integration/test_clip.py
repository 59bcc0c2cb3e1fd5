"""CLIP from an open-clip model to vectors out of Triton: what is exported answers as open-clip does."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from keek_server.embedded import EmbeddedStack
from keek_server.errors import SetupError, UnavailableError
from keek_server.settings import Settings
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.clip import Clip
from keek_server.towers.clip_tokens import Tokenizer
from keek_server.towers.contract import CLIP_ENCODERS, CLIP_IMAGE, CLIP_TEXT
from keek_training.clip.files import ClipExport
from keek_training.publishing.clip import choose_clip, place_clip
from keek_training.publishing.repository import load_version

# onnxscript and torch's exporter warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

torch = pytest.importorskip("torch", reason="needs the extra keek[clip]")
open_clip = pytest.importorskip("open_clip", reason="needs the extra keek[clip]")

BIN = Path(__file__).parents[2] / ".venv" / "bin"
VERSION = 41
DEADLINE_S = 30.0
TEXTS = ["a photo of a cat", "A dog, dancing in the street!", "猫の写真 😀", "", "word " * 200]


@pytest.fixture(scope="module")
def loaded() -> Any:
    """The small seeded model."""
    from keek_training.clip.model import load_clip

    return load_clip(None, None)


@pytest.fixture(scope="module")
def export(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> ClipExport:
    """The model as it is exported."""
    from keek_training.clip.export import export_clip

    export = ClipExport.named("latest", Settings(data_dir=tmp_path_factory.mktemp("clip")))
    export_clip(loaded, export)
    return export


@pytest.fixture(scope="module")
async def towers(stack: EmbeddedStack) -> AsyncIterator[TowerClient]:
    async with open_towers(stack.settings) as towers:
        yield towers


@pytest.fixture(scope="module")
async def clip(stack: EmbeddedStack, towers: TowerClient, export: ClipExport) -> Clip:
    """The exported model as the server uses it, through Triton."""
    settings = stack.settings.model_copy(update={"data_dir": export.folder.parent.parent})
    source = choose_clip(None, None, settings)
    assert source is not None
    version = place_clip(source, VERSION, [], settings.model_repository)
    await load_version(settings, VERSION, [encoder.model for encoder in CLIP_ENCODERS])
    return Clip.open(
        export.folder,
        towers,
        image_version=version.image.version,
        text_version=version.text.version,
        deadline_s=DEADLINE_S,
    )


def pictures(count: int, size: int = 224) -> Any:
    return np.random.default_rng(3).integers(0, 256, (count, 3, size, size), np.uint8)


def preprocessing(loaded: Any) -> Any:
    """open-clip's own, from a picture to what it encodes."""
    config = open_clip.transform.PreprocessCfg(**loaded.preprocessing)
    return open_clip.transform.image_transform_v2(config, is_train=False)


def image_vectors(loaded: Any, frames: Any) -> Any:
    """What open-clip itself makes of frames that are resized and cropped."""
    normalise = preprocessing(loaded).transforms[-1]
    with torch.no_grad():
        pixels = normalise(torch.from_numpy(frames).float() / 255)
        return loaded.model.encode_image(pixels, normalize=True).numpy()


def text_vectors(loaded: Any, texts: list[str]) -> Any:
    with torch.no_grad():
        return loaded.model.encode_text(loaded.tokenizer(texts), normalize=True).numpy()


def test_the_report_says_how_it_compares_and_that_it_is_untrained(export: ClipExport) -> None:
    report = json.loads((export.folder / "export.json").read_text())
    record = export.record()
    assert report["untrained"] is True
    assert record.untrained
    assert (
        record.clip_model
        == report["clip_model"]
        == (f"seeded-small/untrained@{report['encoders']['clip_image']['sha256'][:12]}")
    )
    assert report["golden_texts"] > 300
    for encoder in CLIP_ENCODERS:
        entry = report["encoders"][encoder.model]
        assert 0 < entry["max_abs_difference"] < 1e-5
        assert entry["size_bytes"] == export.model(encoder).stat().st_size


async def test_triton_gives_the_vectors_of_open_clip_for_pictures(clip: Clip, loaded: Any) -> None:
    frames = pictures(20)
    expected = image_vectors(loaded, frames)
    for count in (1, 3, 20):
        mean = expected[:count].mean(axis=0)
        vector = await clip.images.vector(frames[:count])
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
        assert vector.dtype == np.float32


async def test_triton_gives_the_vectors_of_open_clip_for_texts(clip: Clip, loaded: Any) -> None:
    vectors = await asyncio.gather(*map(clip.texts.vector, TEXTS))
    np.testing.assert_allclose(np.stack(vectors), text_vectors(loaded, TEXTS), atol=1e-5)
    np.testing.assert_allclose(await clip.texts.vector(TEXTS[0]), vectors[0], atol=1e-5)


async def test_frames_of_several_videos_share_batches_and_each_gets_its_own_vector(
    clip: Clip, towers: TowerClient, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    ask = TowerClient.vectors

    async def recorded(self: TowerClient, *arguments: Any, **named: Any) -> Any:
        # The class is everybody's: other tests' servers in this process ask for vectors as well.
        if self is towers:
            batches.append(len(arguments[2]["pixels"]))
        return await ask(self, *arguments, **named)

    monkeypatch.setattr(TowerClient, "vectors", recorded)
    frames = pictures(19)
    parts = np.split(frames, [2, 4, 6, 8])
    vectors = await asyncio.gather(*map(clip.images.vector, parts))
    for vector, part in zip(vectors, parts, strict=True):
        mean = image_vectors(loaded, part).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert sum(batches) == 19
    assert max(batches) <= 16
    assert len(batches) < len(parts)


async def test_a_picture_of_another_size_is_refused_before_and_by_triton(
    clip: Clip, towers: TowerClient
) -> None:
    with pytest.raises(ValueError, match="frames of shape"):
        await clip.images.vector(pictures(1, 256))
    with pytest.raises(ValueError, match="frames of shape"):
        await clip.images.vector(pictures(0))
    for size in (192, 256):
        with pytest.raises(UnavailableError, match="clip_image version 41"):
            await towers.vectors(CLIP_IMAGE, VERSION, {"pixels": pictures(1, size)}, deadline_s=DEADLINE_S)


async def test_a_version_that_triton_lacks_is_noticed(
    clip: Clip, towers: TowerClient, export: ClipExport
) -> None:
    await clip.check()
    missing = Clip.open(
        export.folder, towers, image_version=VERSION, text_version=VERSION + 1, deadline_s=DEADLINE_S
    )
    with pytest.raises(UnavailableError, match="clip_text version 42"):
        await missing.check()


def test_a_picture_prepared_as_the_record_says_is_what_open_clip_prepares(
    export: ClipExport, loaded: Any
) -> None:
    record = export.record()
    given = loaded.preprocessing
    assert (record.image_size, record.image_size) == tuple(np.broadcast_to(given["size"], 2))
    assert (record.mean, record.std) == (tuple(given["mean"]), tuple(given["std"]))
    assert (record.resize_mode, record.interpolation) == (given["resize_mode"], given["interpolation"])

    picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (240, 410, 3), np.uint8))
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**given), is_train=False
    )
    size = record.image_size
    width = int(size * 410 / 240)
    left = round((width - size) / 2)
    resized = picture.resize((width, size), Image.Resampling.BICUBIC).crop((left, 0, left + size, size))
    channels = np.asarray(resized).transpose(2, 0, 1).astype(np.float32) / 255
    normalised = (channels - np.float32(record.mean)[:, None, None]) / np.float32(record.std)[:, None, None]
    np.testing.assert_allclose(normalised, transform(picture).numpy(), atol=1e-5)


def test_texts_become_the_tokens_of_open_clip(export: ClipExport, loaded: Any) -> None:
    from keek_training.clip.golden import golden_texts

    tokenizer = Tokenizer.open(export.folder, export.record())
    texts = golden_texts(seed=77)
    assert len(texts) > 300
    for text, expected in zip(texts, loaded.tokenizer(texts).numpy(), strict=True):
        tokens = tokenizer.tokens(text)
        np.testing.assert_array_equal(tokens, expected[: len(tokens)], err_msg=text)
        assert not expected[len(tokens) :].any()


def test_a_written_end_token_does_not_end_a_text(export: ClipExport) -> None:
    record = export.record()
    tokens = Tokenizer.open(export.folder, record).tokens("a <end_of_text> b <start_of_text>")
    assert np.flatnonzero(tokens == record.end_token).tolist() == [len(tokens) - 1]
    assert np.flatnonzero(tokens == record.start_token).tolist() == [0]


def test_a_tokenizer_that_reads_a_text_differently_is_refused(export: ClipExport, loaded: Any) -> None:
    from keek_training.clip.tokenizer import compare_tokenizers, convert_tokenizer

    record = export.record()
    library = convert_tokenizer(loaded.tokenizer)
    library.enable_truncation(20)
    with pytest.raises(SetupError, match=r"reads .word word .* as .* open-clip as"):
        compare_tokenizers(loaded.tokenizer, Tokenizer(library, record), record, TEXTS)


def test_an_encoder_that_answers_differently_is_refused(export: ClipExport, loaded: Any) -> None:
    from keek_training.clip.parity import difference, open_session

    frames = pictures(2)
    session = open_session(export.model(CLIP_IMAGE), 1)
    expected = image_vectors(loaded, frames)
    assert difference(session, CLIP_IMAGE, [frames], expected) < 1e-5
    with pytest.raises(SetupError, match="clip_image: ONNX and torch differ by"):
        difference(session, CLIP_IMAGE, [frames[::-1]], expected)
    with pytest.raises(SetupError, match="clip_image: ONNX and torch differ by nan"):
        difference(session, CLIP_IMAGE, [frames], expected * np.nan)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_file_gives_the_same_files_as_the_model_it_was_saved_from(
    export: ClipExport, loaded: Any, suffix: str, tmp_path: Path, small_in_open_clip: str
) -> None:
    from safetensors.torch import save_file

    from keek_training.clip.convert import convert
    from keek_training.clip.encoders import ImageEncoder
    from keek_training.clip.model import load_clip

    path = tmp_path / f"weights{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save(loaded.model.state_dict(), path)
    read = load_clip(small_in_open_clip, str(path))
    assert (read.name, read.pretrained) == (small_in_open_clip, path.name)

    record = export.record()
    encoder = ImageEncoder(read.model, record.mean, record.std).eval()
    free = {0: torch.export.Dim("batch", min=1, max=32)}
    with torch.no_grad():
        convert(encoder, CLIP_IMAGE, torch.from_numpy(pictures(2)), free, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == export.model(CLIP_IMAGE).read_bytes()


@pytest.fixture
def small_in_open_clip(tmp_path: Path) -> Iterator[str]:
    """The small model under a name that open-clip knows."""
    from keek_training.clip.model import SMALL

    path = tmp_path / "keek-small.json"
    path.write_text(json.dumps(SMALL))
    before = list(open_clip.factory._MODEL_CONFIG_PATHS)
    open_clip.add_model_config(path)
    yield path.stem
    open_clip.factory._MODEL_CONFIG_PATHS[:] = before
    open_clip.factory._rescan_model_configs()


@pytest.mark.parametrize(
    ("model", "pretrained", "words"),
    [
        ("ViT-L-14", "openai", "ViT-L-14 makes vectors of 768 numbers, and the video tower reads 512"),
        ("ViT-B-32", "nobody", "'nobody' is no file and no weights of ViT-B-32: give one of .*laion2b_s34b"),
        ("ViT-B-32", None, "ViT-B-32 needs weights: give --pretrained one of .* or --untrained"),
        ("ViT-B-32", "openai", "trained with another activation: --model ViT-B-32-quickgelu"),
        ("ViT-Z", "openai", "open-clip knows no model 'ViT-Z'"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", "has a tokenizer of its own"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    model: str, pretrained: str | None, words: str
) -> None:
    from keek_training.clip.model import load_clip

    with pytest.raises(SetupError, match=words) as refused:
        load_clip(model, pretrained)
    assert "\n" not in str(refused.value)


def test_a_file_that_holds_no_weights_of_the_model_is_refused_in_one_line(
    loaded: Any, tmp_path: Path
) -> None:
    from keek_training.clip.model import load_clip

    garbage, small = tmp_path / "garbage.pt", tmp_path / "small.pt"
    garbage.write_bytes(b"no weights")
    torch.save(loaded.model.state_dict(), small)
    for path in (garbage, small):
        with pytest.raises(SetupError, match=f"{path} holds no weights of ViT-B-32: ") as refused:
            load_clip("ViT-B-32", str(path))
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 400


def test_weights_that_cannot_be_fetched_are_refused_in_one_line_that_says_what_to_do(
    tmp_path: Path,
) -> None:
    variables = {
        "HF_HUB_CACHE": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "1",
        "KEEK_DATA_DIR": str(tmp_path),
    }
    arguments = ["export-clip", "--model", "ViT-B-32", "--pretrained", "laion2b_s34b_b79k"]
    done = subprocess.run(
        [BIN / "keek-train", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("keek-train:")]
    assert done.stderr.strip().splitlines() == lines
    assert "cannot load the weights 'laion2b_s34b_b79k' of ViT-B-32" in lines[0]
    assert lines[0].endswith("give --pretrained the path of a checkpoint")
    assert not (tmp_path / "clip" / "latest").exists()


def test_a_text_encoder_that_needs_its_padding_is_exported_with_it(tmp_path: Path) -> None:
    from keek_training.clip.export import export_clip
    from keek_training.clip.model import SMALL, LoadedClip

    text = {**SMALL["text_cfg"], "no_causal_mask": True, "pool_type": "first"}
    torch.manual_seed(1)
    model = open_clip.model.CustomTextCLIP(512, SMALL["vision_cfg"], text).eval()
    export = ClipExport(tmp_path / "clip")
    loaded = LoadedClip(model, "not-causal", None, open_clip.SimpleTokenizer())
    report = export_clip(loaded, export)
    assert not export.record().dynamic_length
    assert report["encoders"]["clip_text"]["timed_tokens"] == 77
    tokens = Tokenizer.open(export.folder, export.record()).tokens("a cat")
    assert tokens.shape == (77,)


def test_a_model_that_does_not_fit_into_one_file_is_refused(
    loaded: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from keek_training.clip import convert

    monkeypatch.setattr(convert, "_LARGEST_BYTES", 2**20)
    with pytest.raises(SetupError, match=r"weights of clip_text take .* GiB: more than the 2 GiB"):
        convert.convert(loaded.model, CLIP_TEXT, None, {}, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
