"""8 bits for ONNX Runtime: its own static quantisation, in the one form that is fast on its CPU kernels.

That form was found by measurement (benchmarks/int8.py): activations unsigned with a zero point, weights signed with a
scale for each output channel, rounding written as pairs of QuantizeLinear and DequantizeLinear, and leaky ReLU,
concatenation, pooling and enlargement in 8 bits as well, so that maps stay in 8 bits from one convolution to the next.
With signed activations the kernels for leaky ReLU and concatenation are lost, and with unsigned weights those for
convolutions are slower. Mish, SiLU and the like have no kernel in 8 bits: their arithmetic stays in float.

A map is rounded where the convolution before it or the one after it is in 8 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Add
from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
from scaledyolo.export.calibration import CalibrationImages
from scaledyolo.weights import Array

if TYPE_CHECKING:
    from onnx import ModelProto

_OPERATORS: Final = ("Conv", "LeakyRelu", "Relu", "Clip", "Concat", "MaxPool", "Resize", "Add")
# Under this key ONNX Runtime looks for a sign that shapes were inferred; without, it logs advice to do so.
_PREPARED: Final = ("onnx.quant.pre_process", "onnxruntime.quant")
_FEW_IMAGES: Final = 8  # of which the range of a single layer is taken when its sensitivity is measured


class OnnxQuantiser:
    """Quantised versions of one network, as files for ONNX Runtime.

    Args:
        model: the network in float, with raw maps as its outputs.
        graph: the same as a graph, folded.
        layers: names of the convolutions that may compute in 8 bits.
        images: what the ranges of activations are taken from.
        folder: where files are put.
    """

    def __init__(
        self, model: ModelProto, graph: Graph, layers: Collection[str], images: CalibrationImages, folder: Path
    ) -> None:
        import onnx

        self._images, self._folder = images, folder
        self._input = model.graph.input[0].name
        onnx.helper.set_model_props(model, dict((_PREPARED,)))
        self._float = folder / "float.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(model), self._float)
        nodes = model.graph.node
        self._operations = {node.name.removesuffix(".linear"): node.name for node in nodes if node.op_type == "Conv"}
        sums = {node.name for node in graph if isinstance(node.op, Add)}
        # An addition that is none of the network's own is part of the arithmetic of an activation.
        self._kept = [
            *(name for layer, name in self._operations.items() if layer not in layers),
            *(node.name for node in nodes if node.op_type == "Add" and node.name.removesuffix(".linear") not in sums),
        ]

    @property
    def tool(self) -> str:
        """What quantises, with its version."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def quantise(self, float_layers: Sequence[str]) -> Path:
        """Write the network with all convolutions but these and the last ones in 8 bits; returns its .onnx."""
        path = self._folder / f"int8-{len(float_layers)}.onnx"
        # With the convolution its activation, which has the layer's own name, or its input would be rounded there.
        kept = [*self._kept, *(name for layer in float_layers for name in (self._operations[layer], layer))]
        self._quantise(path, iter(self._images), op_types_to_quantize=list(_OPERATORS), nodes_to_exclude=kept)
        return path

    def open(self, path: Path | None) -> OnnxRuntimeEngine:
        """An engine for a file of :meth:`quantise`; None: for the network in float."""
        return OnnxRuntimeEngine(path or self._float, quantised=path is not None)

    def run_float(self, images: Sequence[Array]) -> list[list[Array]]:
        """Raw maps of each image, by the network in float."""
        return self._run(self._float, images)

    def run_alone(self, layer: str, images: Sequence[Array]) -> list[list[Array]]:
        """Raw maps of each image with one convolution in 8 bits."""
        path = self._folder / "alone.onnx"
        few = iter(self._images.sample(_FEW_IMAGES))
        self._quantise(path, few, op_types_to_quantize=["Conv"], nodes_to_quantize=[self._operations[layer]])
        return self._run(path, images)

    def _quantise(self, path: Path, images: Iterator[Array], **choice: Any) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        name = self._input

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, Array] | None:
                image = next(images, None)
                return None if image is None else {name: image}

        quantize_static(
            self._float,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            **choice,
        )

    def _run(self, path: Path, images: Sequence[Array]) -> list[list[Array]]:
        engine = OnnxRuntimeEngine(path)
        return [engine.run(image) for image in images]
