"""torch to ONNX, and the contract's shapes on what comes out."""

from pathlib import Path
from typing import Any, Final

import onnx
import torch

from keek_server.errors import SetupError
from keek_server.towers.contract import TowerContract
from keek_training.contract_check import check_contract

OPSET: Final = 18
_IR_VERSION: Final = 9
"""What the towers have, and the ONNX Runtime of every Triton in use reads."""
_LARGEST_BYTES: Final = 2**31 - 2**24
"""What one file may hold of weights: protobuf ends at 2 GiB."""


def convert(encoder: Any, contract: TowerContract, example: Any, free: dict[int, Any], path: Path) -> None:
    """Exports an encoder with torch's dynamo exporter into one file that keeps the contract.

    Args:
        encoder: A module of one input, in evaluation mode.
        contract: CLIP_IMAGE or CLIP_TEXT.
        example: An input with at least two rows.
        free: Its free dimensions, each a torch.export.Dim.
        path: Where the file goes.

    Raises:
        SetupError: When the weights do not fit into one file, or the contract is broken.
    """
    size = sum(weight.numel() * weight.element_size() for weight in encoder.state_dict().values())
    if size > _LARGEST_BYTES:
        raise SetupError(
            f"the weights of {contract.model} take {size / 2**30:.1f} GiB: more than the 2 GiB that fit into "
            "one ONNX file, and files beside it are not published"
        )
    (spec,) = contract.inputs
    program = torch.onnx.export(
        encoder,
        (example,),
        dynamo=True,
        input_names=[spec.name],
        output_names=[contract.output.name],
        dynamic_shapes=(free,),
        opset_version=OPSET,
        verbose=False,
    )
    model = program.model_proto
    _strip(model)
    _state_shapes(model.graph.input[0], ["batch", *spec.shape])
    _state_shapes(model.graph.output[0], ["batch", *contract.output.shape])
    model.ir_version = _IR_VERSION
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
    check_contract(path, contract)


def _strip(model: Any) -> None:
    """Removes what the exporter notes on the way (its own names, stack traces): of the same weights
    comes the same file, whatever machine it is made on."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # They hold what is below fixed for the example's size.
    graph.ClearField("value_info")


def _state_shapes(value: Any, shape: list[str | int]) -> None:
    """Writes the contract's shape: Triton's C++ backend refuses a fixed dimension where the
    configuration has a free one. The positions in the model's weights still fix what can be asked."""
    dimensions = value.type.tensor_type.shape
    dimensions.ClearField("dim")
    for place, size in enumerate(shape):
        if isinstance(size, int) and size > 0:
            dimensions.dim.add(dim_value=size)
        else:
            dimensions.dim.add(dim_param=size if isinstance(size, str) else f"{value.name}_{place}")
