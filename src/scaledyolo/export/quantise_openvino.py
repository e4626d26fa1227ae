"""8 bits for OpenVINO: post-training quantisation by NNCF, the toolkit of OpenVINO's makers.

Weights of a convolution get one scale for each output channel, activations one scale and zero point for each tensor;
NNCF places the points where activations are rounded, and corrects biases for the mean error that rounding causes.
Nothing inside the arithmetic of an activation is rounded: Mish enters as the operator, of others it is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scaledyolo.engines.openvino import OpenVinoEngine, import_openvino
from scaledyolo.errors import MissingPackageError
from scaledyolo.export.calibration import CalibrationImages
from scaledyolo.weights import Array

if TYPE_CHECKING:
    from onnx import ModelProto

_CONVOLUTIONS: Final = ("Convolution", "GroupConvolution")
# What the ONNX reader appends to the name of a convolution that has a bias, and the writer to one with an activation.
_SUFFIXES: Final = ("/WithoutBiases", ".linear")
_MOVES_VALUES: Final = (
    "Concat", "DepthToSpace", "Interpolate", "MaxPool", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split",
    "StridedSlice", "Transpose", "VariadicSplit",
)  # fmt: skip
# By which part the writer's arithmetic of an activation is recognised: SiLU by its sigmoid, GELU by a half.
_PARTS: Final = ((".sigmoid", "Sigmoid"), (".half", "Multiply"))
_TELEMETRY: Final = "openvino_telemetry"


class OpenVinoQuantiser:
    """Quantised versions of one network, as files for OpenVINO.

    Args:
        model: the network in float with native Mish, its outputs named by its heads.
        heads: their names.
        layers: names of the convolutions that may compute in 8 bits.
        images: what the ranges of activations are taken from.
        folder: where files are put.

    Raises:
        MissingPackageError: NNCF is not installed.
    """

    def __init__(
        self,
        model: ModelProto,
        heads: Sequence[str],
        layers: Collection[str],
        images: CalibrationImages,
        folder: Path,
    ) -> None:
        self._nncf, self._openvino = import_nncf(), import_openvino()
        self._images, self._folder = images, folder
        self._source = model.SerializeToString()
        self._float = self._openvino.Core().read_model(self._source)
        self._free_shape = self._float.inputs[0].partial_shape
        self._float.reshape([1, self._float.inputs[0].partial_shape[1], images.height, images.width])
        self._operations = _convolutions(self._float)
        others = [name for layer, name in self._operations.items() if layer not in layers]
        self._kept = [*_around_heads(self._float, heads), *_inside_activations(self._float), *others]
        self._full: Any = None

    @property
    def tool(self) -> str:
        """What quantises, with its version."""
        return f"nncf {self._nncf.__version__}"

    def quantise(self, float_layers: Sequence[str]) -> Path:
        """Write the network with all convolutions but these and the last ones in 8 bits; returns its .xml."""
        model = self._quantised(float_layers)
        model.reshape(self._free_shape)
        path = self._folder / f"int8-{len(float_layers)}.xml"
        self._openvino.save_model(model, str(path), compress_to_fp16=False)
        return path

    def open(self, path: Path | None) -> OpenVinoEngine:
        """An engine for a file of :meth:`quantise`; None: for the network in float."""
        if path is not None:
            return OpenVinoEngine(path, quantised=True)
        return OpenVinoEngine(self._source)

    def run_float(self, images: Sequence[Array]) -> list[list[Array]]:
        """Raw maps of each image, by the network in float."""
        return self._run(self._float, images)

    def run_alone(self, layer: str, images: Sequence[Array]) -> list[list[Array]]:
        """Raw maps of each image with one convolution in 8 bits: its input and weights are rounded as they will be."""
        if self._full is None:
            self._full = self._quantised(())
        model = self._float.clone()
        self._round_one(model, layer)
        return self._run(model, images)

    def _quantised(self, float_layers: Sequence[str]) -> Any:
        kept = [*self._kept, *(self._operations[name] for name in float_layers)]
        images = self._nncf.Dataset(range(len(self._images)), self._images.input)
        with _quietly():
            return self._nncf.quantize(
                self._float.clone(),
                images,
                preset=self._nncf.QuantizationPreset.MIXED,
                target_device=self._nncf.TargetDevice.CPU,
                subset_size=len(self._images),
                ignored_scope=self._nncf.IgnoredScope(names=list(dict.fromkeys(kept))),
            )

    def _round_one(self, model: Any, layer: str) -> None:
        """Round input and weights of one convolution of the float ``model`` like the fully quantised network does."""
        name = self._operations[layer]
        quantised, plain = _operation(self._full, name), _operation(model, name)
        rounded = self._rounded(quantised.input_value(0), plain.input_value(0))
        weights = self._openvino.opset13.constant(self._value(quantised.input_value(1)))
        plain.input(0).replace_source_output(rounded)
        plain.input(1).replace_source_output(weights.output(0))

    def _rounded(self, quantised: Any, plain: Any) -> Any:
        """The output ``plain`` of the float network, rounded like its counterpart ``quantised``.

        Where the rounding stands before operations that only move values, these are repeated behind it.
        """
        node, unrounded = quantised.get_node(), plain.get_node()
        if node.get_type_name() == "FakeQuantize":
            inputs = [plain, *(self._copy(node.input_value(port)) for port in range(1, 5))]
        elif node.get_type_name() in _MOVES_VALUES:
            pairs = zip(node.input_values(), unrounded.input_values(), strict=True)
            inputs = [self._rounded(*pair) for pair in pairs]
        else:
            return plain
        factory = importlib.import_module("openvino.utils.node_factory").NodeFactory(node.get_type_info().version_id)
        return factory.create(node.get_type_name(), inputs, node.get_attributes()).output(quantised.get_index())

    def _copy(self, constant: Any) -> Any:
        return self._openvino.opset13.constant(constant.get_node().data).output(0)

    def _value(self, output: Any) -> Array:
        """The value of an output that depends on constants only."""
        model = self._openvino.Model([self._openvino.opset13.result(output)], [])
        compiled = self._openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.asarray(compiled([])[0], np.float32)

    def _run(self, model: Any, images: Sequence[Array]) -> list[list[Array]]:
        compiled = self._openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        request = compiled.create_infer_request()
        results = (request.infer({0: image}, share_outputs=False) for image in images)
        return [[result[output] for output in compiled.outputs] for result in results]


def import_nncf() -> ModuleType:
    """The ``nncf`` package, imported without its telemetry, which reports every use to a server of the vendor's.

    Raises:
        MissingPackageError: it is not installed.
    """
    import_openvino()
    if sys.modules.get("nncf") is None:
        hidden = sys.modules.pop(_TELEMETRY, None)
        modules: dict[str, Any] = sys.modules
        modules[_TELEMETRY] = None  # what Python itself takes for "cannot be imported"
        try:
            importlib.import_module("nncf")
        except ModuleNotFoundError as error:
            if error.name != "nncf":
                raise
            raise MissingPackageError(
                "8 bits in OpenVINO need nncf; install it with: pip install 'scaledyolo[int8]'"
            ) from None
        finally:
            del sys.modules[_TELEMETRY]
            if hidden is not None:
                sys.modules[_TELEMETRY] = hidden
    nncf = sys.modules["nncf"]
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """NNCF draws its progress on standard output, where results belong: show it to people only, beside them."""
    with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield


def _convolutions(model: Any) -> dict[str, str]:
    """Names of the convolutions in OpenVINO by their names in the graph."""
    found = {}
    for operation in model.get_ops():
        if operation.get_type_name() in _CONVOLUTIONS:
            name = plain = operation.get_friendly_name()
            for suffix in _SUFFIXES:
                plain = plain.removesuffix(suffix)
            found[plain] = name
    return found


def _operation(model: Any, name: str) -> Any:
    return next(item for item in model.get_ops() if item.get_friendly_name() == name)


def _inside_activations(model: Any) -> list[str]:
    """Names of the operations that make up an activation where it is written as arithmetic, the last one included."""
    kinds = {operation.get_friendly_name(): operation.get_type_name() for operation in model.get_ops()}
    written = {
        name.removesuffix(part)
        for name, found in kinds.items()
        for part, kind in _PARTS
        if name.endswith(part) and found == kind and kinds.get(name.removesuffix(part)) == "Multiply"
    }
    return [
        name
        for name in kinds
        for layer, dot, part in [name.rpartition(".")]
        if name in written or (layer in written and dot and not part.startswith("linear"))
    ]


def _around_heads(model: Any, heads: Sequence[str]) -> list[str]:
    """Names of the last convolutions before the heads' maps and of everything after them: decoding, suppression."""
    starts = [
        output.get_node()
        for operation in model.get_ops()
        for output in operation.outputs()
        if not output.get_names().isdisjoint(heads)
    ]
    names: dict[str, None] = {}
    waiting, seen = list(starts), set()
    while waiting:  # back to the convolutions
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen or node.get_type_name() in ("Constant", "Parameter"):
            continue
        seen.add(name)
        names[name] = None
        if node.get_type_name() not in _CONVOLUTIONS:
            waiting.extend(port.get_node() for port in node.input_values())
    waiting, seen = list(starts), set()
    while waiting:  # on to the outputs
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen or node.get_type_name() == "Result":
            continue
        seen.add(name)
        names[name] = None
        waiting.extend(port.get_node() for output in node.outputs() for port in output.get_target_inputs())
    return list(names)
