"""What this machine can do at most: multiply-adds a second in a matrix product, bytes a second in a copy.

A network cannot be faster than the matrix product of the best library at hand, nor move data faster than a plain copy;
both are measured in the same rounds as the networks, so that a share of the peak holds on a busy machine too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scaledyolo.bench.candidates import timed_ms
from scaledyolo.bench.jobs import CopyJob, GemmJob
from scaledyolo.errors import UsageError

# The side of the matrices doubles until one product takes long enough to be at full speed.
_SIDES: Final = (512, 1024, 2048, 4096)
_CUDA_SIDE: Final = 8192
_LONG_ENOUGH_MS: Final = 20.0
_COPY_BYTES: Final = 128 << 20  # of each of the two arrays: more than caches hold

Matrix = npt.NDArray[np.float32]
# From two matrices to a function that multiplies them once.
Multiplier = Callable[[Matrix, Matrix], Callable[[], object]]


class GemmCandidate:
    """A product of two square matrices of random numbers."""

    def __init__(self, job: GemmJob, multiplier: Multiplier, sides: tuple[int, ...]) -> None:
        random = np.random.default_rng(0)
        for side in sides:
            left, right = (random.random((side, side), np.float32) for _ in range(2))
            self._run, self._side = multiplier(left, right), side
            self._run()
            if timed_ms(self._run) >= _LONG_ENOUGH_MS:
                break
        self._library, self._precision = job.library, job.precision

    def facts(self) -> dict[str, Any]:
        """Library, precision and the floating-point operations of one product: 2 side³."""
        return {"library": self._library, "precision": self._precision, "flops": 2 * self._side**3}

    def sample(self) -> dict[str, Any]:
        """Multiply once."""
        return {"ms": timed_ms(self._run)}


def gemm_candidate(job: GemmJob) -> GemmCandidate:
    """The product in a library; raises what :func:`multiplier_of` does."""
    return GemmCandidate(job, multiplier_of(job), (_CUDA_SIDE,) if job.device == "cuda" else _SIDES)


def multiplier_of(job: GemmJob) -> Multiplier:
    """What makes products in a library.

    Raises:
        UsageError: the library does not compute in this precision.
        MissingPackageError: it is not installed.
    """
    if job.library == "openvino":
        return _openvino_multiplier(job)
    if job.library == "torch":
        from scaledyolo.bench.gemm_torch import multiplier

        return multiplier(job.device, job.precision, job.threads)
    if job.precision != "float32":
        raise UsageError(f"NumPy multiplies in float32, not in {job.precision}")
    return _numpy_multiplier


def _numpy_multiplier(left: Matrix, right: Matrix) -> Callable[[], object]:
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out)


def _openvino_multiplier(job: GemmJob) -> Multiplier:
    from scaledyolo.engines.openvino import PRECISIONS, available_precisions, import_openvino

    openvino = import_openvino()
    in_bytes = job.precision == "int8"
    if not in_bytes and job.precision not in available_precisions("cpu"):
        raise UsageError(f"this cpu does not compute in {job.precision}")
    from openvino import opset13 as ops

    options = {
        "INFERENCE_PRECISION_HINT": PRECISIONS["float32" if in_bytes else job.precision],
        "INFERENCE_NUM_THREADS": str(job.threads),
        "PERFORMANCE_HINT": "LATENCY",
    }

    def multiplier(left: Matrix, right: Matrix) -> Callable[[], object]:
        given = ops.parameter(list(left.shape), np.float32)
        first, second = _quantised(ops, given, right) if in_bytes else (given, ops.constant(right))
        model = openvino.Model([ops.matmul(first, second, False, False)], [given])
        request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
        return lambda: request.infer({0: left}, share_inputs=True, share_outputs=True)

    return multiplier


def _quantised(ops: Any, given: Any, right: Matrix) -> tuple[Any, Any]:
    """Both sides of a product as a quantised network has them: values from 0 to 1 in 8 bits, weights stored in 8."""
    low, high, steps = np.float32(0), np.float32(1), 127
    stored = ops.convert(ops.constant(np.round(right * steps).astype(np.int8)), np.float32)
    scale = np.full((1, right.shape[1]), 1 / steps, np.float32)
    return ops.fake_quantize(given, low, high, low, high, 256), ops.multiply(stored, scale)


class CopyCandidate:
    """A copy from one large array to another, each thread its part; counts bytes read and bytes written."""

    def __init__(self, job: CopyJob) -> None:
        count = _COPY_BYTES // 4
        source, target = np.ones(count, np.float32), np.zeros(count, np.float32)
        self.parts = list(zip(np.array_split(target, job.threads), np.array_split(source, job.threads), strict=True))
        self._pool = ThreadPoolExecutor(job.threads)

    def facts(self) -> dict[str, Any]:
        """Bytes that one copy moves."""
        return {"bytes": 2 * _COPY_BYTES}

    def sample(self) -> dict[str, Any]:
        """Copy once."""
        return {"ms": timed_ms(self._copy)}

    def _copy(self) -> None:
        list(self._pool.map(lambda part: np.copyto(*part), self.parts))  # NumPy lets go of the interpreter meanwhile
