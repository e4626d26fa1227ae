"""Weights of an ONNX model stored as float16, computed with as float32: half the file, the same speed.

Each stored tensor gets a ``Cast`` behind it, which every runtime folds away when it loads the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scaledyolo.weights import as_float16

if TYPE_CHECKING:
    from onnx import ModelProto

_SMALLEST: Final = 256  # values; below, a Cast costs more bytes than it saves


def store_half(model: ModelProto) -> ModelProto:
    """Round every large float32 tensor to float16, in place.

    Raises:
        ConversionError: a weight is outside the range of float16; names the tensor.
    """
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _SMALLEST:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(as_float16(tensor.name, values), f"{name}.float16"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], name=name, to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
