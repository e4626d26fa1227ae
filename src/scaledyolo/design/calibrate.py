"""Getting to know a machine: short networks at several sizes, some to fit the latency model, others to try it on.

They are spread over what the features can be: narrow and wide, shallow and deep, fine and coarse maps, both kinds of
activation, two levels and three. Those held out differ from all others in width, depth and size.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np

from scaledyolo.arch.ops import Activation
from scaledyolo.arch.scaling import num_stages, scaled, tiny_scaled
from scaledyolo.arch.zoo import find, tiny
from scaledyolo.design.candidates import Candidate, feature_matrix, network_of
from scaledyolo.design.device import Device
from scaledyolo.design.latency import LatencyModel, fit_model
from scaledyolo.design.profile import LANES
from scaledyolo.design.store import Store


class _Csp(NamedTuple):
    """A scaled YOLOv4-CSP."""

    width: str
    depth: str
    size: int
    activation: Activation


class _Tiny(NamedTuple):
    """A scaled YOLOv4-tiny."""

    growth: int
    levels: int
    size: int
    activation: Activation


_FITTED: Final = (
    _Tiny(16, 2, 256, "leaky"),
    _Tiny(32, 2, 416, "leaky"),
    _Tiny(48, 3, 320, "mish"),
    _Tiny(24, 3, 608, "leaky"),
    _Tiny(64, 2, 288, "leaky"),
    _Tiny(40, 2, 544, "mish"),
    _Csp("1/8", "1/8", 256, "mish"),
    _Csp("1/8", "1/2", 640, "leaky"),
    _Csp("1/4", "1/8", 320, "mish"),
    _Csp("1/4", "1/8", 640, "leaky"),
    _Csp("1/4", "1", 384, "leaky"),
    _Csp("3/8", "1/4", 512, "mish"),
    _Csp("1/2", "1/8", 256, "leaky"),
    _Csp("1/2", "1/8", 480, "mish"),
    _Csp("1/2", "3/4", 320, "mish"),
    _Csp("3/4", "1/4", 288, "leaky"),
    _Csp("3/4", "3/8", 416, "mish"),
    _Csp("1", "1/8", 256, "mish"),
    _Csp("1", "1/2", 352, "leaky"),
    _Csp("5/4", "1/4", 320, "mish"),
)
_HELD_OUT: Final = (
    _Tiny(56, 3, 352, "leaky"),
    _Tiny(32, 3, 512, "mish"),
    _Csp("3/16", "3/8", 448, "mish"),
    _Csp("5/16", "1/8", 576, "leaky"),
    _Csp("7/16", "5/8", 352, "leaky"),
    _Csp("5/8", "1/8", 544, "mish"),
    _Csp("7/8", "1/4", 448, "leaky"),
    _Csp("9/8", "5/8", 288, "mish"),
)


def calibration(num_classes: int = 80) -> list[tuple[Candidate, bool]]:
    """What is measured, and whether it is held out of the fit."""
    return [
        (_candidate(one, num_classes), held_out)
        for group, held_out in ((_FITTED, False), (_HELD_OUT, True))
        for one in group
    ]


def _candidate(described: _Csp | _Tiny, num_classes: int) -> Candidate:
    if isinstance(described, _Tiny):
        levels = described.levels
        whole = tiny("yolov4-tiny" if levels == 2 else "yolov4-tiny-3l", levels=levels)
        depth, width = Fraction(1), Fraction(described.growth, 32)
        spec, family = tiny_scaled(whole, growth=described.growth), "tiny"
    else:
        depth, width = Fraction(described.depth), Fraction(described.width)
        spec, family = scaled(find("yolov4-csp"), depth=depth, width=width, multiple=LANES), "csp"
    network = network_of(spec.with_classes(num_classes), family, num_stages(spec), depth, width)
    return Candidate(network, described.size, described.activation)


def calibrated(device: Device, store: Store, tell: Callable[[str], None] = lambda text: None) -> LatencyModel:
    """The latency model of a machine: that of the store, or a new one, which the store then keeps."""
    if store.model is not None:
        return store.model
    chosen = calibration()
    tell(f"measuring {len(chosen)} short networks to learn how fast this machine is")
    candidates = [candidate for candidate, _ in chosen]
    timings = device.measure(candidates)
    times_ms = np.array([timing.median_ms for timing in timings])
    store.model = fit_model(feature_matrix(candidates), times_ms, [held_out for _, held_out in chosen])
    store.save()
    return store.model
