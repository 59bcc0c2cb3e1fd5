"""Broken pairs of towers, each made from a good one by a change of its own, and the gate that must refuse it.

Nothing of them is kept anywhere: they are generated when they are needed, the same at every call.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import broken_graphs as graphs
from benchmarks.tower_files import TowerFiles, Towers

_TOO_LARGE_BYTES = 1100 * 2**20
_ENDLESS = 2**62

Write = Callable[[Towers, Path], TowerFiles]


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """One pair that must not serve."""

    name: str
    write: Write
    """Makes the two files in a folder, from a good pair."""
    reasons: tuple[str, ...]
    """What the refusal must say, all of it: the gate first."""

    def is_refused_rightly(self, message: str) -> bool:
        """Whether a refusal says what it should, in one line."""
        return "\n" not in message and all(reason in message for reason in self.reasons)


def broken_models() -> Iterator[BrokenModel]:
    """All of them."""
    for group in (_no_models(), _other_contracts(), _dangerous(), _useless(), _failing(), _worse()):
        for name, write, *reasons in group:
            yield BrokenModel(name, write, tuple(reasons))


_Row = tuple[str, Write, *tuple[str, ...]]


def _users(change: Callable[..., object], *arguments: object) -> Write:
    """The user tower, changed in place."""

    def write(towers: Towers, folder: Path) -> TowerFiles:
        model = towers.users()
        change(model, *arguments)
        return towers.write(folder, users=model)

    return write


def _videos(change: Callable[..., object], *arguments: object) -> Write:
    """The video tower, changed in place."""

    def write(towers: Towers, folder: Path) -> TowerFiles:
        model = towers.videos()
        change(model, *arguments)
        return towers.write(folder, videos=model)

    return write


def _user_bytes(content: Callable[[bytes], bytes]) -> Write:
    """Other bytes in the user tower's place, made from its own."""

    def write(towers: Towers, folder: Path) -> TowerFiles:
        return towers.write(folder, users=content(towers.users().SerializeToString()))

    return write


def _no_models() -> list[_Row]:
    taken = "gate format:", "only ONNX is taken"
    return [
        ("empty", _user_bytes(lambda _: b""), *taken),
        ("truncated", _user_bytes(lambda good: good[: len(good) * 7 // 10]), *taken, "its end is missing"),
        ("torchscript", _user_bytes(lambda _: _torchscript()), *taken),
        ("pickle", _user_bytes(lambda _: pickle.dumps({"weights": np.eye(64)})), *taken),
        ("hdf5", _user_bytes(lambda good: b"\x89HDF\r\n\x1a\n" + good), *taken),
        # A TensorFlow SavedModel begins as an ONNX model does.
        ("saved-model", _user_bytes(lambda _: b"\x08\x01\x12\x05graph"), *taken),
        ("pipe", _pipe, *taken, "no regular file"),
        ("too-large", _too_large, "gate size_mb:"),
    ]


def _other_contracts() -> list[_Row]:
    expected = "gate contract:", "expected"
    return [
        ("wrong-dimension", _videos(graphs.cut_output, 32), *expected, "video_vector", "[-1, 64]"),
        ("dimension-not-as-declared", _videos(graphs.cut_output_silently), *expected, "comes out as"),
        ("wrong-input-name", _users(graphs.rename_input), *expected, "history_kinds"),
        ("one-more-input", _users(graphs.add_input), *expected, "positions"),
        ("wrong-input-dtype", _users(graphs.other_input_dtype), *expected, "int64", "history_kinds"),
        ("wrong-output-dtype", _videos(graphs.half_output), *expected, "float16", "video_vector"),
        ("fixed-history-length", _users(graphs.fix_history_length), *expected, "history_vectors"),
        ("swapped", _swapped, *expected),
        ("opset-unknown", _users(graphs.set_opset, 99), "gate opset:", "value 99"),
    ]


def _dangerous() -> list[_Row]:
    outside = "gate external_data:", "weights outside the file"
    return [
        ("external-escaping", _external("../../../../../../etc/passwd"), *outside, "etc/passwd"),
        ("external-absolute", _external("/dev/zero"), *outside, "/dev/zero"),
        ("external-inside", _external("weights.bin"), *outside, "weights.bin"),
        ("external-in-a-loop", _users(graphs.hide_external, "/dev/zero"), *outside, "/dev/zero"),
        ("operator-unknown", _users(graphs.foreign_operator, "our.own"), "gate runs:", "our.own"),
        ("memory-eater", _users(graphs.eat_memory), "gate runs:", "user_tower"),
        ("never-ends", _users(graphs.make_slow, _ENDLESS), "gate runs:", "processor time"),
    ]


def _useless() -> list[_Row]:
    return [
        ("nan-weights", _videos(graphs.nan_weight), "gate weights:", "NaN"),
        ("nan-answers", _videos(graphs.nan_answers), "gate max_norm:", "not finite"),
        ("infinite-answers", _users(graphs.scale_output, 1e30, 1e30), "gate max_norm:", "not finite"),
        ("huge-norms", _videos(graphs.scale_output, 1e6), "gate max_norm:", "largest L2 norm"),
        ("zero-vectors", _videos(graphs.scale_output, 0.0), "gate spread:", "of them zero"),
        ("constant-vectors", _users(graphs.constant_output), "gate spread:", "user_tower"),
        ("batch-dependent", _users(graphs.mix_batch), "gate batch:", "other rows of a batch"),
        ("random-answers", _videos(graphs.random_answers), "gate batch:"),
    ]


def _failing() -> list[_Row]:
    runs = "gate runs:", "golden inputs"
    return [
        ("fails-on-no-history", _users(graphs.fail_on_history, 0), *runs),
        ("fails-on-full-history", _users(graphs.fail_on_history, graphs.FULL_HISTORY), *runs),
        # Golden inputs cannot know these: they show when the corpus is embedded.
        ("infinite-for-one-video", _videos(graphs.infinite_for, "v500"), "not finite for 1 videos", "'v500'"),
        ("fails-for-one-video", _videos(graphs.fail_for, "v500"), "video_tower"),
    ]


def _worse() -> list[_Row]:
    return [
        ("50-times-slower", _fifty_times_slower, "gate latency:", "live release"),
        ("quality-destroyed", _users(graphs.rotate_output, 11), "gate quality:", "held-out videos"),
        ("recall-destroyed", _without_order, "gate recall:", "against exact search"),
    ]


def _torchscript() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("towers/version", "3\n")
        archive.writestr("towers/data.pkl", pickle.dumps({}))
        archive.writestr("towers/code/__torch__.py", "class Tower(Module):\n  pass\n")
        archive.writestr("towers/data/0", np.eye(64, dtype=np.float32).tobytes())
    return content.getvalue()


def _pipe(towers: Towers, folder: Path) -> TowerFiles:
    """Whoever opens it to read waits for ever."""
    files = towers.write(folder)
    files.users.unlink()
    os.mkfifo(files.users)
    return files


def _too_large(towers: Towers, folder: Path) -> TowerFiles:
    files = towers.write(folder)
    os.truncate(files.videos, _TOO_LARGE_BYTES)
    return files


def _swapped(towers: Towers, folder: Path) -> TowerFiles:
    return towers.write(folder, users=towers.videos(), videos=towers.users())


def _without_order(towers: Towers, folder: Path) -> TowerFiles:
    users, videos = towers.users(), towers.videos()
    graphs.keep_half(users, first=True)
    graphs.keep_half(videos, first=False)
    return towers.write(folder, users=users, videos=videos)


def _external(location: str) -> Write:
    def write(towers: Towers, folder: Path) -> TowerFiles:
        model = towers.videos()
        content = graphs.move_weight_outside(model, location)
        if location == Path(location).name:
            (folder / location).write_bytes(content)
        return towers.write(folder, videos=model)

    return write


def _fifty_times_slower(towers: Towers, folder: Path) -> TowerFiles:
    model = towers.users()
    graphs.make_slow(model, graphs.loops_for(towers.users(), times=50))
    return towers.write(folder, users=model)
