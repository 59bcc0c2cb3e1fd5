"""What a converted graph is spared: arithmetic on shapes that costs more than what it is for."""

import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper


def without_flattening(model: ModelProto) -> int:
    """Lets each product of a tensor of three dimensions with a matrix stand alone, in place.

    The conversion flattens the tensor before and restores it after, with some eight nodes on shapes
    each; ONNX multiplies such tensors as they are. At one user a call these nodes are a third of the time.

    Returns:
        How many products were freed.
    """
    graph = model.graph
    made = {output: node for node in graph.node for output in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    freed = 0
    for product in graph.node:
        if product.op_type != "MatMul" or product.input[1] not in matrices:
            continue
        before, after = made.get(product.input[0]), users.get(product.output[0], [])
        if before is None or len(after) != 1 or not _restores(before, product, after[0]):
            continue
        product.input[0] = before.input[0]
        for user in users.get(after[0].output[0], []):
            user.input[:] = [product.output[0] if name == after[0].output[0] else name for name in user.input]
        freed += 1
    _prune(graph)
    return freed


def with_layer_norms(model: ModelProto) -> int:
    """Makes one operator of each layer normalisation, which the conversion writes as eleven.

    Returns:
        How many were found.
    """
    graph = model.graph
    made = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = 0
    for node in list(graph.node):
        parts = _norm_parts(node, made, set(constants))
        if parts is None:
            continue
        x, gamma, beta, epsilon = parts
        flat = []
        for name in (gamma, beta):
            flat.append(f"{name}/flat")
            if flat[-1] not in constants:
                constants[flat[-1]] = constants[name].reshape(-1)
                graph.initializer.append(numpy_helper.from_array(constants[flat[-1]], flat[-1]))
        norm = helper.make_node(
            "LayerNormalization",
            [x, *flat],
            list(node.output),
            node.name,
            axis=-1,
            epsilon=float(constants[epsilon].item()),
        )
        node.CopyFrom(norm)
        found += 1
    _prune(graph)
    return found


def _norm_parts(
    node: NodeProto, made: dict[str, NodeProto], constants: set[str]
) -> tuple[str, str, str, str] | None:
    """Names of x, gamma, beta and epsilon where the node ends `x * s + (beta - mean * s)`, in which
    `s = gamma / sqrt(variance + epsilon)`."""

    def walk(start: NodeProto, *kinds: str) -> NodeProto | None:
        """Back along inputs that are made by nodes of these kinds."""
        own: NodeProto | None = start
        for kind in kinds:
            makers = [made[name] for name in own.input if name in made] if own else []
            own = next((maker for maker in makers if maker.op_type == kind), None)
        return own

    def constant(own: NodeProto) -> str | None:
        return next((name for name in own.input if name in constants), None)

    scaled, moved = walk(node, "Mul"), walk(node, "Add")
    if node.op_type != "Add" or scaled is None or moved is None:
        return None
    scale, mean = walk(scaled, "Mul"), walk(moved, "Mul", "Neg", "GlobalAveragePool")
    if scale is None or mean is None or scaled.input[0] != mean.input[0]:
        return None
    deviation = walk(scale, "Reciprocal", "Sqrt", "Add")
    variance = walk(scale, "Reciprocal", "Sqrt", "Add", "GlobalAveragePool", "Mul", "Sub")
    if deviation is None or variance is None or set(variance.input) != {mean.input[0], mean.output[0]}:
        return None
    names = constant(scale), constant(moved), constant(deviation)
    if None in names:
        return None
    return mean.input[0], str(names[0]), str(names[1]), str(names[2])


def _restores(before: NodeProto, product: NodeProto, after: NodeProto) -> bool:
    """Whether both reshape, and are parts of one dense layer: the conversion names them so."""
    return (
        before.op_type == after.op_type == "Reshape"
        and product.name.endswith("/Tensordot/MatMul")
        and after.name.startswith(product.name.removesuffix("/MatMul"))
    )


def _prune(graph: onnx.GraphProto) -> None:
    """Removes nodes and constants that nothing reads any more."""
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(constants)
