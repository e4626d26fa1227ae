"""Whether a network may be computed in fewer bits here: measured once for each network and machine, then remembered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.engines.base import Engine
from scaledyolo.engines.compiled_cache import CompiledCache, network_digest
from scaledyolo.weights import Array, Weights

# Root mean square error of a head's map over the spread of that map. Rounding to bfloat16 alone gives 0.2 to 1.5 %
# through a whole network; what overflows or cancels lies far above.
TOLERANCE: Final = 0.03
_PROBE_SIDE: Final = 256  # pixels, about; the arithmetic is that of any size


def relative_error(maps: Sequence[Array], reference: Sequence[Array]) -> float:
    """The largest over all heads of RMS(map - reference) / standard deviation(reference); infinite for NaN."""
    worst = 0.0
    for found, expected in zip(maps, reference, strict=True):
        spread = float(np.std(expected, dtype=np.float64)) or 1.0
        error = float(np.sqrt(np.mean(np.square(found - expected, dtype=np.float64)))) / spread
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def probe_image(graph: Graph) -> Array:
    """A fixed image (1, channels, height, width) float32 in [0, 1] with edges, gradients and noise."""
    stride = graph.max_stride
    side = max(1, round(_PROBE_SIDE / stride)) * stride
    y, x = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
    planes = [0.5 + 0.5 * np.sin(2 * np.pi * (frequency * x + y)) for frequency in range(1, graph.channels + 1)]
    image = np.stack(planes) * 0.8 + 0.2 * np.random.default_rng(0).random((graph.channels, side, side))
    image[:, side // 4 : side // 2, side // 3 : side // 2] = 0.05
    return image[None].astype(np.float32)


def bfloat16_error(graph: Graph, weights: Weights, cache: CompiledCache | None = None) -> float:
    """Error of the network in bfloat16 against float32 on this machine, both in OpenVINO; see `relative_error`."""
    from scaledyolo.engines.openvino import OpenVinoEngine, import_openvino

    cache = cache or CompiledCache()
    key = cache.key(network_digest(graph, weights), {"fact": "bfloat16", "runtime": import_openvino().__version__})
    known = cache.load(key)
    if known is not None:
        return float(json.loads(known))
    engines: list[Engine] = [
        OpenVinoEngine.from_graph(graph, weights, precision=precision, keep=False)
        for precision in ("bfloat16", "float32")
    ]
    image = probe_image(graph)
    error = relative_error(*(engine.run(image) for engine in engines))
    cache.store(key, json.dumps(error).encode())
    return error
