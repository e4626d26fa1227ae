"""Runtimes behind one seam, :class:`~scaledyolo.engines.base.Engine`.

    select         open_engine("auto" | "onnxruntime" | "torch", graph, weights, device=...) -> Engine
    base           the seam, and what all engines check
    onnxruntime    the default, free of torch
    torch          for GPUs; needs the train extra
"""

from scaledyolo.engines.base import Engine
from scaledyolo.engines.select import ENGINES, open_engine

__all__ = ["ENGINES", "Engine", "open_engine"]
