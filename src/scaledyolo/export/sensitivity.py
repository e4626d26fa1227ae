"""Which convolutions suffer from 8 bits, and how many of them have to stay in float. Pure functions.

Rounding errors of different layers are nearly independent, so their squares add up at the outputs. Each layer is
measured alone: that layer in 8 bits, all others in float. The error that returning it to float removes, for the
operations that this costs, orders the layers; the fewest that bring the network within its limit are then found by
doubling their number and halving the interval, which takes a logarithmic number of measurements on the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from scaledyolo.weights import Array


def noise(found: Iterable[Sequence[Array]], expected: Iterable[Sequence[Array]]) -> float:
    """Mean over images and heads of the squared error of the raw maps over their variance.

    Args:
        found: raw maps of each image.
        expected: those of the network in float.
    """
    shares = []
    for maps, reference in zip(found, expected, strict=True):
        for value, wanted in zip(maps, reference, strict=True):
            variance = float(np.var(wanted, dtype=np.float64)) or 1.0
            error = float(np.mean(np.square(value - wanted, dtype=np.float64))) / variance
            shares.append(error if np.isfinite(error) else np.inf)
    return float(np.mean(shares)) if shares else 0.0


def most_sensitive_first(noises: Mapping[str, float], macs: Mapping[str, int]) -> list[str]:
    """Layers by the noise that leaving each in float removes for every operation that this costs; ties by name."""
    return sorted(noises, key=lambda name: (-noises[name] / max(macs[name], 1), name))


def most_float_layers(order: Sequence[str], macs: Mapping[str, int], share: float) -> int:
    """How many of the first layers may stay in float while at least ``share`` of all operations are in 8 bits."""
    total, spent = sum(macs.values()), 0
    for count, name in enumerate(order):
        spent += macs[name]
        if total - spent < share * total:
            return count
    return len(order)


def fewest(passes: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 1 to ``most`` that passes, if all above one that passes do too; None where none does.

    Asks for 1, 2, 4 ... until one passes, then between that and the last that failed: 2 log2(answer) questions.
    """
    failed, trial = 0, 1
    while trial < most and not passes(trial):
        failed, trial = trial, 2 * trial
    if trial >= most:
        trial = most
        if most < 1 or not passes(most):
            return None
    while trial - failed > 1:
        middle = (failed + trial) // 2
        if passes(middle):
            trial = middle
        else:
            failed = middle
    return trial
