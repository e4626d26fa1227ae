"""Whether a network may be computed in fewer bits here: measured once for each network and machine, then remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from scaledyolo.engines.base import Engine
from scaledyolo.engines.compiled_cache import CompiledCache
from scaledyolo.weights import Array

# Largest relative error that is accepted. Rounding to bfloat16 gives 2 to 4 % in networks of plain convolutions with
# random weights. In two trained networks of depthwise ones it gives 10 and 14 %, which costs them 0.10 and 0.09 points
# of AP on 328 images of COCO. What overflows or cancels lies far above.
TOLERANCE: Final = 0.15
_PROBE_SIDE: Final = 256  # pixels, about; the arithmetic is that of any size


def relative_error(maps: Sequence[Array], reference: Sequence[Array]) -> float:
    """The largest over all heads of RMS(map - reference) / spread(reference); infinite for NaN.

    The spread is the standard deviation over positions, root mean square over channels: what tells one place from
    another. Differences between channels, as biases make them, would hide the error.
    """
    worst = 0.0
    for found, expected in zip(maps, reference, strict=True):
        variance = np.var(expected, axis=tuple(range(2, expected.ndim)), dtype=np.float64)
        spread = float(np.sqrt(np.mean(variance))) or 1.0
        error = float(np.sqrt(np.mean(np.square(found - expected, dtype=np.float64)))) / spread
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def probe_image(channels: int, stride: int) -> Array:
    """A fixed image (1, channels, side, side) float32 in [0, 1] with edges, gradients and noise."""
    side = max(1, round(_PROBE_SIDE / stride)) * stride
    return scene(channels, side, side, seed=0)[None]


def scene(channels: int, height: int, width: int, seed: int) -> Array:
    """A reproducible picture (channels, height, width) float32 in [0, 1]: waves, noise and filled rectangles."""
    random = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    waves = [np.sin(2 * np.pi * (random.uniform(1, 6) * x + random.uniform(1, 6) * y)) for _ in range(channels)]
    image = 0.5 + 0.35 * np.stack(waves) + 0.15 * random.uniform(-1, 1, (channels, height, width))
    for _ in range(6):
        top, left = int(random.integers(0, height - 1)), int(random.integers(0, width - 1))
        bottom, right = int(random.integers(top + 1, height)), int(random.integers(left + 1, width))
        image[:, top:bottom, left:right] = random.random((channels, 1, 1))
    return np.ascontiguousarray(np.clip(image, 0, 1), np.float32)


def bfloat16_error(
    digest: str,
    open_in: Callable[[str], Engine],
    probe: Callable[[], Array],
    cache: CompiledCache | None = None,
) -> float:
    """Error of a network in bfloat16 against float32 on this machine; see :func:`relative_error`.

    Args:
        digest: of the network, under which the error is remembered.
        open_in: an engine that computes in a precision.
        probe: makes the input to compare on; called where nothing is remembered.
        cache: where to remember it.
    """
    from scaledyolo.engines.openvino import import_openvino

    cache = cache or CompiledCache()
    key = cache.key(digest, {"fact": "bfloat16 error", "runtime": import_openvino().__version__})
    known = cache.load(key)
    if known is not None:
        return float(json.loads(known))
    images = probe()
    error = relative_error(*(open_in(precision).run(images) for precision in ("bfloat16", "float32")))
    cache.store(key, json.dumps(error).encode())
    return error
