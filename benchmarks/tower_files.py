"""A pair of towers as ONNX files, and edits of their graphs: nodes before an input, or after an output."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from keek_server.towers.contract import USER_TOWER, VIDEO_TOWER

USER_OUT, VIDEO_OUT = USER_TOWER.output.name, VIDEO_TOWER.output.name
_INNER, _EDIT = "_before_edit", "benchmark/"


@dataclass(frozen=True, slots=True)
class TowerFiles:
    """The two files that are published together."""

    users: Path
    videos: Path

    @classmethod
    def within(cls, folder: Path) -> "TowerFiles":
        """The names that pairs have here; the files need not exist."""
        return cls(folder / "users.onnx", folder / "videos.onnx")

    @property
    def arguments(self) -> list[str]:
        """What `keek-train publish` takes."""
        return ["--user-tower", str(self.users), "--video-tower", str(self.videos)]


@dataclass(frozen=True, slots=True)
class Towers:
    """A good pair, from which others are made; what is given out may be changed."""

    _users: bytes
    _videos: bytes

    @classmethod
    def read(cls, files: TowerFiles) -> "Towers":
        """Reads both files."""
        return cls(files.users.read_bytes(), files.videos.read_bytes())

    def users(self) -> ModelProto:
        """A copy of the user tower."""
        return onnx.load_from_string(self._users)

    def videos(self) -> ModelProto:
        """A copy of the video tower."""
        return onnx.load_from_string(self._videos)

    def write(
        self,
        folder: Path,
        *,
        users: ModelProto | bytes | None = None,
        videos: ModelProto | bytes | None = None,
    ) -> TowerFiles:
        """Writes a pair in which one tower, or both, are others."""
        files = TowerFiles.within(folder)
        files.users.write_bytes(_content(self._users if users is None else users))
        files.videos.write_bytes(_content(self._videos if videos is None else videos))
        return files


def _content(model: ModelProto | bytes) -> bytes:
    return model if isinstance(model, bytes) else model.SerializeToString()


def add_weight(model: ModelProto, name: str, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
    """Puts a constant into a graph.

    Returns:
        Its name in the graph, see `edited`.

    Raises:
        ValueError: When the graph has one of this name.
    """
    name = edited(name)
    if any(weight.name == name for weight in model.graph.initializer):
        raise ValueError(f"{model.graph.name} has a weight {name!r} already: edit the original")
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
    return name


def after_output(model: ModelProto, make: Sequence[NodeProto] | NodeProto, name: str) -> ModelProto:
    """Appends nodes behind an output.

    Args:
        model: Changed in place, and returned.
        make: Nodes that read `inner(name)` and write `name`.
        name: The output.
    """
    _rename(model.graph, name, inner(name), outputs=True)
    model.graph.node.extend(_own_names(make, name))
    return model


def before_input(model: ModelProto, make: Sequence[NodeProto] | NodeProto, name: str) -> ModelProto:
    """Puts nodes before whatever reads an input.

    Args:
        model: Changed in place, and returned.
        make: Nodes that read `name` and write `inner(name)`.
        name: The input.
    """
    _rename(model.graph, name, inner(name), outputs=False)
    nodes = [*_own_names(make, name), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def edited(name: str) -> str:
    """What a weight or a value that an edit adds is called in the graph: as no converter calls anything."""
    return _EDIT + name


def inner(name: str) -> str:
    """What an edited input or output is called within the graph."""
    return name + _INNER


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    """A node with one output."""
    return helper.make_node(kind, list(inputs), [output], **attributes)


def _own_names(make: Sequence[NodeProto] | NodeProto, name: str) -> list[NodeProto]:
    """The nodes, with names between them that the graph has not."""
    nodes = [make] if isinstance(make, NodeProto) else list(make)
    between = {output for each in nodes for output in each.output} - {name, inner(name)}
    for each in nodes:
        each.input[:] = [edited(own) if own in between else own for own in each.input]
        each.output[:] = [edited(own) if own in between else own for own in each.output]
    return nodes


def _rename(graph: GraphProto, old: str, new: str, *, outputs: bool) -> None:
    """Bodies of loops and branches see the names around them, so they are renamed in these too."""
    for each in graph.node:
        each.input[:] = [new if name == old else name for name in each.input]
        if outputs:
            each.output[:] = [new if name == old else name for name in each.output]
        for attribute in each.attribute:
            bodies = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for body in bodies:
                _rename(body, old, new, outputs=outputs)
