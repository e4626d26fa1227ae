"""How long a network takes on this machine: a sum of what its nodes do, each times a rate that was fitted here.

The features (:data:`.profile.FEATURES`) are the calculus of the paper's section 3: multiply-accumulates by kind of
convolution, values moved, activations, operations started. The rates are milliseconds for each, never negative, and
least squares of the *relative* error over measured networks, so that small networks count as much as large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scaledyolo.design.profile import FEATURES
from scaledyolo.errors import FormatError, UsageError

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LatencyModel:
    """Rates of a machine, and how well they told the time of networks they were not fitted to."""

    rates_ms: tuple[float, ...]  # milliseconds for each unit of FEATURES
    held_out_error: float  # mean absolute relative error on networks at sizes that were not fitted
    worst_error: float  # the largest of these
    fitted: int  # networks of the fit
    held_out: int  # networks that it was tried on

    def predict(self, features: Values) -> Values:
        """(n,) milliseconds of one image for features (n, len(FEATURES))."""
        times: Values = features @ np.array(self.rates_ms)
        return times

    def to_dict(self) -> dict[str, Any]:
        """Plain values that :meth:`from_dict` reads back."""
        return {
            "rates_ms": dict(zip(FEATURES, self.rates_ms, strict=True)),
            "held_out_error": self.held_out_error,
            "worst_error": self.worst_error,
            "fitted": self.fitted,
            "held_out": self.held_out,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatencyModel:
        """A model from plain values.

        Raises:
            FormatError: they are of other features, or incomplete.
        """
        try:
            rates = values["rates_ms"]
            if tuple(rates) != FEATURES:
                raise FormatError(f"a latency model of other features: {', '.join(rates)}")
            return cls(
                tuple(float(rate) for rate in rates.values()),
                float(values["held_out_error"]),
                float(values["worst_error"]),
                int(values["fitted"]),
                int(values["held_out"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"an incomplete latency model ({error})") from None


def fit_rates(features: Values, times_ms: Values) -> Values:
    """(k,) rates >= 0 that minimise the sum of squared relative errors.

    Args:
        features: (n, k) of measured networks.
        times_ms: (n,) what they took.

    Raises:
        UsageError: a time is not above zero.
    """
    from scipy.optimize import nnls

    if len(times_ms) == 0 or not (times_ms > 0).all():
        raise UsageError("a latency model needs measured times above zero")
    relative = features / times_ms[:, None]
    scale = np.abs(relative).max(axis=0)
    scale[scale == 0] = 1.0  # a feature that no measured network has keeps a rate of zero
    rates: Values = nnls(relative / scale, np.ones(len(times_ms)))[0] / scale
    return rates


def relative_errors(rates_ms: Values, features: Values, times_ms: Values) -> Values:
    """(n,) absolute relative error of each prediction."""
    errors: Values = np.abs(features @ rates_ms - times_ms) / times_ms
    return errors


def fit_model(features: Values, times_ms: Values, held_out: Sequence[bool]) -> LatencyModel:
    """Fit on what is not held out, measure the error on what is, then fit once more on everything.

    The error is that of the first fit: of networks and sizes that it had never seen. The second has seen more.

    Raises:
        UsageError: nothing is held out, or nothing is left.
    """
    hidden = np.array(held_out, bool)
    if hidden.all() or not hidden.any():
        raise UsageError("a latency model needs networks to fit and others to be tried on")
    errors = relative_errors(fit_rates(features[~hidden], times_ms[~hidden]), features[hidden], times_ms[hidden])
    return LatencyModel(
        rates_ms=tuple(fit_rates(features, times_ms).tolist()),
        held_out_error=float(errors.mean()),
        worst_error=float(errors.max()),
        fitted=int((~hidden).sum()),
        held_out=int(hidden.sum()),
    )
