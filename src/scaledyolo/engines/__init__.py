"""Runtimes behind one seam, :class:`~scaledyolo.engines.base.Engine`.

select           open_engine("auto" | "openvino" | "onnxruntime" | "torch", graph, weights, device=...) -> Engine
base             the seam, and what all engines check
openvino         the default on x86, free of torch
onnxruntime      the default elsewhere, free of torch
torch            for GPUs; needs the train extra
ncnn, litert, coreml  run what is exported for phones and boards, and verify it
on_device        from uint8 images to rows of detections without leaving a GPU; needs the train extra
greedy_triton    suppression there in one kernel
compiled_cache   compiled models on disk
faithful         whether fewer bits will do, measured
"""

from scaledyolo.engines.base import Engine
from scaledyolo.engines.select import ENGINES, choose_engine, describe_engine, open_engine

__all__ = ["ENGINES", "Engine", "choose_engine", "describe_engine", "open_engine"]
