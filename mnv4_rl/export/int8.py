"""int8 in the largest fully connected layer, which holds nine tenths of an agent's weights.

Plain ONNX operators, no calibration: each output of the layer has a scale of its own, and each observation gets its own
at run time. One empty picture in a batch, a hundred times as large as the others, so costs the others nothing.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Graph: TypeAlias = Any  # onnx.ModelProto; the package is imported where it is needed
Node: TypeAlias = Any  # onnx.NodeProto

LARGEST = 127.0
# Of a weight. x86 without VNNI adds two products in 16 bits: 2 * 255 * 63 is the most that fits.
LARGEST_WEIGHT = 63.0
MIDDLE = 128  # stands for 0 where numbers are unsigned


def quantize_largest_layer(model: Graph) -> None:
    """Replace the largest ``Gemm`` of a graph by an int8 product, in place.

    Raises:
        ValueError: If the graph has no such layer.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "Gemm" and node.input[1] in weights]
    if not layers:
        raise ValueError("The agent has no fully connected layer to store in int8.")
    layer = max(layers, key=lambda node: int(np.prod(weights[node.input[1]].dims)))
    weight = numpy_helper.to_array(weights[layer.input[1]])  # (outputs, inputs) if transposed
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
    weight = weight.T if is_transposed else weight
    scale = np.maximum(np.abs(weight).max(0), 1e-12) / LARGEST_WEIGHT  # (outputs,)
    numbers = np.round(weight / scale).astype(np.int8)
    name = layer.input[1]
    constants = {f"{name}.int8": numbers, f"{name}.scale": scale.astype(np.float32)}
    constants |= {"int8.largest": np.float32(LARGEST), "int8.tiny": np.float32(1e-12), "int8.axis": np.array([1])}
    constants |= {"int8.middle": np.float32(MIDDLE), "int8.zero": np.uint8(MIDDLE)}
    place = list(model.graph.node).index(layer)
    nodes = _nodes(layer, name)
    model.graph.node.remove(layer)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)
    model.graph.initializer.remove(weights[name])
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items())


def _nodes(layer: Node, name: str) -> list[Node]:
    """``x W + b`` (or without ``b``) in steps: ``s`` of each row is its largest number / 127, and ``x W`` is about
    ``(round(x / s)) (W int8) * s * scale``.
    """
    from onnx import TensorProto, helper

    x, _, *bias = layer.input
    own = layer.name or name
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Abs", [x], "abs", {}),
        ("ReduceMax", ["abs", "int8.axis"], "peak", {"keepdims": 1}),
        ("Max", ["peak", "int8.tiny"], "positive", {}),
        ("Div", ["positive", "int8.largest"], "step", {}),
        ("Div", [x, "step"], "steps", {}),
        ("Round", ["steps"], "rounded", {}),
        ("Add", ["rounded", "int8.middle"], "shifted", {}),  # x86's int8 products take one side unsigned
        ("Cast", ["shifted"], "numbers", {"to": TensorProto.UINT8}),
        ("MatMulInteger", ["numbers", f"{name}.int8", "int8.zero"], "product", {}),
        ("Cast", ["product"], "floats", {"to": TensorProto.FLOAT}),
        ("Mul", ["floats", "step"], "rows", {}),
        ("Mul", ["rows", f"{name}.scale"], "scaled", {}),
        *[("Add", ["scaled", name], "sum", {}) for name in bias],
    ]
    unique = {output: f"{own}.{output}" for _, _, output, _ in steps} | {steps[-1][2]: layer.output[0]}
    return [
        helper.make_node(kind, [unique.get(i, i) for i in inputs], [unique[output]], f"{own}.{output}.node", **options)
        for kind, inputs, output, options in steps
    ]
