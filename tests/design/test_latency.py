"""The latency model: a law that is known is found again, and the error it reports is the error it has."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.design.calibrate import calibration
from scaledyolo.design.candidates import feature_matrix
from scaledyolo.design.latency import LatencyModel, fit_model, fit_rates, relative_errors
from scaledyolo.design.profile import FEATURES
from scaledyolo.errors import FormatError, UsageError

# Milliseconds: 100 G MAC/s, 20 GB/s in float32, 5 microseconds a node, 1 ms an image.
LAW = dict.fromkeys(FEATURES, 0.0) | {
    "spatial_macs": 1e-8,
    "pointwise_macs": 2e-8,
    "conv_values": 2e-7,
    "weights": 2e-7,
    "costly_activations": 1e-6,
    "nodes": 5e-3,
    "pixels": 2e-6,
    "images": 1.0,
}
RATES = np.array(list(LAW.values()))


@pytest.fixture(scope="module")
def known():
    chosen = calibration()
    return feature_matrix([candidate for candidate, _ in chosen]), [held_out for _, held_out in chosen]


def test_a_law_is_found_again(known):
    features, held_out = known
    model = fit_model(features, features @ RATES, held_out)
    assert model.held_out_error < 1e-6
    np.testing.assert_allclose(model.predict(features), features @ RATES, rtol=1e-6)
    np.testing.assert_allclose(model.rates_ms, RATES, rtol=0.02, atol=1e-9)


def test_the_calibration_tells_all_features_apart(known):
    """Columns, scaled alike, are far from dependent: no rate is a guess."""
    features, held_out = known
    fitted = features[~np.array(held_out)] / (features[~np.array(held_out)] @ RATES)[:, None]
    assert np.linalg.matrix_rank(fitted / fitted.max(axis=0), tol=1e-4) == len(FEATURES)


@given(st.integers(0, 2**32 - 1))
def test_the_error_reported_is_that_of_networks_not_seen(known, seed):
    features, held_out = known
    hidden = np.array(held_out)
    times = features @ RATES * np.random.default_rng(seed).uniform(0.9, 1.1, len(features))
    model = fit_model(features, times, held_out)
    rates = fit_rates(features[~hidden], times[~hidden])
    predicted = features[hidden] @ rates
    assert model.held_out_error == pytest.approx(np.mean(np.abs(predicted / times[hidden] - 1)))
    assert model.held_out_error <= model.worst_error
    assert (np.array(model.rates_ms) >= 0).all()
    assert model.held_out_error < 0.15


def test_disturbances_of_a_tenth_leave_predictions_within_a_tenth(known):
    features, held_out = known
    noise = np.random.default_rng(0).uniform(0.9, 1.1, len(features))
    model = fit_model(features, features @ RATES * noise, held_out)
    assert relative_errors(np.array(model.rates_ms), features, features @ RATES).mean() < 0.05


def test_held_out_networks_differ_in_shape_and_size():
    chosen = calibration()
    shapes = {False: set(), True: set()}
    for one, held_out in chosen:
        shapes[held_out].add((one.network.depth, one.network.width, one.network.profile.strides, one.size))
    assert len(shapes[True]) >= 6
    for depth, width, strides, size in shapes[True]:
        assert all((depth, width, strides) != other[:3] and (width, size) != other[1::2] for other in shapes[False])


def test_a_model_survives_json(known):
    features, held_out = known
    model = fit_model(features, features @ RATES, held_out)
    again = LatencyModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again == model
    damaged = model.to_dict() | {"rates_ms": {"spatial_macs": 1.0}}
    for values in (damaged, {}, model.to_dict() | {"fitted": "many"}):
        with pytest.raises(FormatError):
            LatencyModel.from_dict(values)


def test_what_cannot_be_fitted_is_refused(known):
    features, _ = known
    with pytest.raises(UsageError, match="above zero"):
        fit_rates(features, np.zeros(len(features)))
    for everything in (True, False):
        with pytest.raises(UsageError, match="to fit and others"):
            fit_model(features, features @ RATES, [everything] * len(features))
