"""Exports a CLIP: two encoders, a tokenizer, the record of how to use them, and a report."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from tqdm import tqdm

from keek_server.errors import SetupError
from keek_server.files import sha256_of
from keek_server.towers.clip_record import TOKENIZER_FILE, ClipRecord
from keek_server.towers.clip_tokens import Tokenizer
from keek_server.towers.contract import CLIP_IMAGE, CLIP_TEXT, TowerContract
from keek_training.clip.convert import OPSET, convert
from keek_training.clip.encoders import ImageEncoder, TextEncoder, is_causal
from keek_training.clip.files import ClipExport
from keek_training.clip.golden import golden_pictures, golden_texts
from keek_training.clip.model import LoadedClip
from keek_training.clip.parity import difference, ms_per_row
from keek_training.clip.tokenizer import PAD_TOKEN, compare_tokenizers, convert_tokenizer
from keek_training.sessions import open_session

BATCHES: Final = (1, 2, 5)
"""Sizes of the batches that torch and ONNX are compared on."""
TIMED_TEXT: Final = "a photo of a cat that plays the piano"

_THREADS: Final = (1, 2)
_MODEL_ID_LENGTH: Final = 64
_HASH_LENGTH: Final = 12
_Report = dict[str, Any]


def export_clip(clip: LoadedClip, target: ClipExport) -> _Report:
    """Exports a model, compares it with open-clip, measures it, and puts it into `target`'s place.

    Returns:
        The report, also written as export.json: parity, ms a picture and a text, sizes, checksums.

    Raises:
        SetupError: When the model cannot be served, or differs from open-clip once exported;
            what `target` held before is still there.
    """
    with target.writing() as files, torch.no_grad(), tqdm(total=3, desc="exporting CLIP") as steps:
        preprocessing = _preprocessing(clip)
        image = _export_images(clip, preprocessing, files.model(CLIP_IMAGE))
        steps.update()
        record = _record(clip, preprocessing, image["sha256"])
        record.save(files.folder)
        convert_tokenizer(clip.tokenizer).save(str(files.folder / TOKENIZER_FILE))
        tokenizer = Tokenizer.open(files.folder, record)
        texts = golden_texts()
        compare_tokenizers(clip.tokenizer, tokenizer, record, texts)
        steps.update()
        text = _export_texts(clip, tokenizer, texts, files.model(CLIP_TEXT))
        steps.update()
        report = {
            "clip_model": record.clip_model,
            "untrained": record.untrained,
            "opset": OPSET,
            "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
            "golden_texts": len(texts),
            "encoders": {CLIP_IMAGE.model: image, CLIP_TEXT.model: text},
        }
        files.write_report(report)
    return report


def _export_images(clip: LoadedClip, preprocessing: dict[str, Any], path: Path) -> _Report:
    mean, std, size = (preprocessing[name] for name in ("mean", "std", "image_size"))
    pictures = golden_pictures(sum(BATCHES), size)
    encoder = ImageEncoder(clip.model, mean, std).eval()
    free = {0: torch.export.Dim("batch", min=1, max=CLIP_IMAGE.max_batch_size)}
    started = time.perf_counter()
    convert(encoder, CLIP_IMAGE, torch.from_numpy(pictures[:2]), free, path)
    seconds = time.perf_counter() - started

    # As open-clip is used, apart from what was exported.
    normalised = (pictures / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    expected = clip.model.encode_image(torch.from_numpy(normalised).float(), normalize=True).numpy()
    batches = np.split(pictures, np.cumsum(BATCHES)[:-1])
    worst = difference(open_session(path, 1), CLIP_IMAGE, batches, expected)
    return _describe(path, worst, seconds) | {"ms_by_threads": _ms(path, CLIP_IMAGE, pictures[:1])}


def _export_texts(clip: LoadedClip, tokenizer: Tokenizer, texts: list[str], path: Path) -> _Report:
    encoder = TextEncoder(clip.model).eval()
    free = {0: torch.export.Dim("batch", min=1, max=CLIP_TEXT.max_batch_size)}
    if encoder.dynamic_length:
        free[1] = torch.export.Dim("length", min=2, max=clip.tokenizer.context_length)
    timed = tokenizer.padded([tokenizer.tokens(TIMED_TEXT)])
    started = time.perf_counter()
    convert(encoder, CLIP_TEXT, torch.from_numpy(timed).repeat(2, 1), free, path)
    seconds = time.perf_counter() - started

    # Batches of each size in turn, padded to their longest text; open-clip pads all to the context.
    session = open_session(path, 1)
    worst = 0.0
    for start, end in pairwise(np.cumsum((0, *BATCHES * 4)).tolist()):
        part = texts[start:end]
        expected = clip.model.encode_text(clip.tokenizer(part), normalize=True).numpy()
        tokens = tokenizer.padded([tokenizer.tokens(text) for text in part])
        worst = max(worst, difference(session, CLIP_TEXT, [tokens], expected))
    ms = _ms(path, CLIP_TEXT, timed)
    return _describe(path, worst, seconds) | {"ms_by_threads": ms, "timed_tokens": timed.shape[1]}


def _ms(path: Path, encoder: TowerContract, batch: npt.NDArray[Any]) -> dict[str, float]:
    return {str(threads): ms_per_row(path, encoder, batch, threads) for threads in _THREADS}


def _preprocessing(clip: LoadedClip) -> dict[str, Any]:
    """open-clip's own preprocessing of this model, as far as the server's can be the same."""
    given = clip.preprocessing
    size = given["size"]
    width, height = size if isinstance(size, (tuple, list)) else (size, size)
    if width != height:
        raise SetupError(f"{clip.name} reads pictures of {width} x {height}; only square ones are made")
    if given["resize_mode"] == "longest" and given["fill_color"] != 0:
        raise SetupError(f"{clip.name} reads pictures with edges that are not black")
    names = ("resize_mode", "interpolation", "mean", "std")
    return {"image_size": int(width)} | {name: given[name] for name in names}


def _record(clip: LoadedClip, preprocessing: dict[str, Any], sha256: str) -> ClipRecord:
    untrained = clip.pretrained is None
    mark = f"@{sha256[:_HASH_LENGTH]}"
    name = f"{clip.name}/{'untrained' if untrained else clip.pretrained}"
    try:
        return ClipRecord(
            clip_model=name[: _MODEL_ID_LENGTH - len(mark)] + mark,
            model=clip.name,
            pretrained=clip.pretrained,
            untrained=untrained,
            **preprocessing,
            context_length=clip.tokenizer.context_length,
            start_token=clip.tokenizer.sot_token_id,
            end_token=clip.tokenizer.eot_token_id,
            pad_token=PAD_TOKEN,
            dynamic_length=is_causal(clip.model),
        )
    except ValueError as error:
        raise SetupError(f"{clip.name} needs what the server cannot do: {error}") from error


def _describe(path: Path, worst: float, seconds: float) -> _Report:
    return {
        "max_abs_difference": worst,
        "export_s": round(seconds, 1),
        "size_bytes": path.stat().st_size,
        "sha256": sha256_of(path),
    }
