"""The file of TensorFlow Lite, now LiteRT: a flatbuffer of tensors, operators and buffers, with metadata by name.

Its schema comes with the runtime's own package, so that nothing is written that the runtime does not know.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scaledyolo.errors import ConversionError, FormatError, MissingPackageError

_VERSION: Final = 3  # of the schema
_IDENTIFIER: Final = b"TFL3"
_ALIGNMENT: Final = 16  # of every buffer: what the runtime's kernels load at a time
_MAX_BYTES: Final = 2**31 - 2**20  # offsets inside a flatbuffer are signed 32 bit
_ONE_BYTE: Final = 127  # codes of operators above are written in a second field, and this in the first


def import_schema() -> Any:
    """The schema's classes.

    Raises:
        MissingPackageError: the runtime is not installed.
    """
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the format tflite needs ai-edge-litert ({error.name} is missing); "
            "install it with: pip install 'scaledyolo[tflite]'"
        ) from None


class TfliteFile:
    """Collects the tensors and operators of one graph; values are known by the number of their tensor."""

    def __init__(self, name: str) -> None:
        self.schema = import_schema()
        self._name = name
        self._buffers: list[Any] = [self.schema.BufferT()]  # the first is empty, for what is computed
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[int, int], int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._bytes = 0

    def tensor(self, name: str, shape: Sequence[int | None]) -> int:
        """A float32 value that is computed; a free dimension is None."""
        return self._add_tensor(name, shape, self.schema.TensorType.FLOAT32, 0)

    def constant(self, name: str, array: NDArray[Any]) -> int:
        """A value that is stored: float32, float16 or int32. Small equal ones are stored once."""
        key = (array.dtype.name, array.shape, array.tobytes() if array.size <= _ALIGNMENT else name.encode())
        if key not in self._constants:
            kind = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32"}[array.dtype.name]
            tensor_type = getattr(self.schema.TensorType, kind)
            self._constants[key] = self._add_tensor(name, array.shape, tensor_type, self._add_buffer(array))
        return self._constants[key]

    def _add_tensor(self, name: str, shape: Sequence[int | None], tensor_type: int, buffer: int) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, tensor_type, buffer
        tensor.shape = [1 if side is None else side for side in shape]
        if None in shape:
            tensor.shapeSignature = [-1 if side is None else side for side in shape]
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _add_buffer(self, array: NDArray[Any]) -> int:
        self._bytes += array.nbytes
        if self._bytes > _MAX_BYTES:
            raise ConversionError(
                f"{self._name}: its weights do not fit into a tflite file, which ends at 2 GiB; "
                "store them as float16 with --half, or use --format onnx"
            )
        buffer = _aligned_buffer(self.schema)
        buffer.data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def operator(self, kind: str, inputs: Sequence[int], output: int, options: Any = None, *, version: int = 1) -> int:
        """Append an operator, by the name that the schema gives it; ``options`` is one of its objects."""
        code = getattr(self.schema.BuiltinOperator, kind)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault((code, version), len(self._codes))
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
            operator.builtinOptions = options
        self._operators.append(operator)
        return output

    def content(self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, str]) -> bytes:
        """The whole file."""
        graph = self.schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = self._name, self._tensors, self._operators
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model = self.schema.ModelT()
        model.version, model.description = _VERSION, "scaledyolo"
        model.subgraphs, model.operatorCodes = [graph], [self._operator_code(*key) for key in self._codes]
        model.metadata = [self._metadata(name, text) for name, text in metadata.items()]
        model.buffers = self._buffers
        builder = _builder(self._bytes + (1 << 20))
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())

    def _operator_code(self, code: int, version: int) -> Any:
        entry = self.schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, _ONE_BYTE), version
        return entry

    def _metadata(self, name: str, text: str) -> Any:
        entry = self.schema.MetadataT()
        entry.name, entry.buffer = name, self._add_buffer(np.frombuffer(text.encode(), np.uint8))
        return entry


def _builder(num_bytes: int) -> Any:
    return importlib.import_module("flatbuffers").Builder(num_bytes)


def _aligned_buffer(schema: Any) -> Any:
    """A buffer whose content begins at a multiple of 16 bytes, which the generated code forgets."""

    class AlignedBuffer(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802 - the name that flatbuffers calls
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return AlignedBuffer()


def read_metadata(content: bytes, where: str) -> dict[str, str]:
    """The metadata of a file.

    Raises:
        FormatError: it is none; ``where`` opens the message.
        MissingPackageError: the runtime is not installed.
    """
    schema = import_schema()
    if content[4:8] != _IDENTIFIER:
        raise FormatError(f"{where}: not a tflite file")
    found = {}
    try:
        model = schema.Model.GetRootAs(content, 0)
        for index in range(model.MetadataLength()):
            entry = model.Metadata(index)
            found[entry.Name().decode()] = bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode()
    except (IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise FormatError(f"{where}: damaged ({error})") from None
    except Exception as error:  # struct.error and whatever else flatbuffers lets through
        raise FormatError(f"{where}: damaged ({error})") from None
    return found


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same file with other metadata."""
    schema = import_schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for index, buffer in enumerate(model.buffers):
        if isinstance(buffer.data, np.ndarray) and buffer.data.size:
            aligned = _aligned_buffer(schema)
            aligned.data = np.ascontiguousarray(buffer.data)
            model.buffers[index] = aligned
    for entry in model.metadata or []:
        name = entry.name.decode() if isinstance(entry.name, bytes) else entry.name
        if name in metadata:
            aligned = _aligned_buffer(schema)
            aligned.data = np.frombuffer(metadata[name].encode(), np.uint8)
            model.buffers[entry.buffer] = aligned
    builder = _builder(len(content) + (1 << 16))
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())
