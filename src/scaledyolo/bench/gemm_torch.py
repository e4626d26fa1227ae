"""The matrix product in torch, for NVIDIA GPUs, where neither NumPy nor OpenVINO reaches the peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

Matrix = npt.NDArray[np.float32]

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def multiplier(device: str, precision: str, threads: int) -> Callable[[Matrix, Matrix], Callable[[], object]]:
    """From two matrices to a function that multiplies them once and waits for the result.

    In float32 a GPU multiplies as its convolutions do: in TF32 where torch allows them to.
    """
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32

    def ready(left: Matrix, right: Matrix) -> Callable[[], object]:
        first, second = (torch.from_numpy(matrix).to(device, _DTYPES[precision]) for matrix in (left, right))

        def run() -> torch.Tensor:
            product = torch.matmul(first, second)
            if device == "cuda":
                torch.cuda.synchronize()
            return product

        return run

    return ready
