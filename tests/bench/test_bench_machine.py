"""What the machine is measured with: products that are products, copies that copy."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import numpy as np
import pytest

from scaledyolo.bench.jobs import CopyJob, GemmJob
from scaledyolo.bench.machine import CopyCandidate, multiplier_of
from scaledyolo.errors import UsageError
from scaledyolo.host import physical_cores

# Largest error relative to the largest value: what rounding both sides to so many bits may do.
CASES = [
    ("numpy", "float32", 1e-5),
    ("openvino", "float32", 1e-5),
    ("openvino", "bfloat16", 2e-2),
    ("openvino", "int8", 2e-2),
    ("torch", "float32", 1e-5),
    ("torch", "bfloat16", 2e-2),
]


@pytest.mark.parametrize(("library", "precision", "tolerance"), CASES)
def test_the_product_is_the_product(library: str, precision: str, tolerance: float) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    try:
        multiplier = multiplier_of(GemmJob(library, "cpu", precision, threads=1))
    except UsageError as error:
        pytest.skip(str(error))
    random = np.random.default_rng(0)
    left, right = (random.random((64, 64), np.float32) for _ in range(2))
    found = multiplier(left, right)()
    if isinstance(found, Mapping):
        (found,) = found.values()
    expected = left.astype(np.float64) @ right
    if library == "torch":
        found = found.float().numpy()  # type: ignore[attr-defined]
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * expected.max()


def test_a_copy_copies_everything_whatever_the_threads() -> None:
    copy = CopyCandidate(CopyJob(threads=3))
    assert copy.sample()["ms"] > 0
    assert all((target == source).all() and source.any() for target, source in copy.parts)
    assert 2 * sum(target.nbytes for target, _ in copy.parts) == copy.facts()["bytes"]


def test_there_is_a_core_and_not_more_than_allowed() -> None:
    import os

    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
