"""The memory estimate: its units, how it grows, and the batch that it allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.memory import fitting_batch, image_bytes, parse_bytes, training_bytes
from scaledyolo.arch.zoo import find
from scaledyolo.errors import UsageError

GRAPH = lower(find("yolov4-tiny"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 * 2**30), ("512M", 2**29), ("6.5 GiB", int(6.5 * 2**30)), ("1000", 1000), ("2tb", 2**41), ("1kB", 1024)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "8X", "-8G", "0G", "G", "8GG", "1e9", "nan"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory; write it like 8G"):
        parse_bytes(text)


def test_the_estimate_grows_with_the_batch_and_the_area() -> None:
    one = image_bytes(GRAPH, 416, 416, "32")
    assert training_bytes(GRAPH, 416, 416, 5, "32") - training_bytes(GRAPH, 416, 416, 2, "32") == 3 * one
    assert image_bytes(GRAPH, 832, 832, "32") == pytest.approx(4 * one, rel=1e-6)
    assert image_bytes(GRAPH, 416, 416, "16") < one
    assert one >= cost(GRAPH).activation_bytes


@given(st.integers(1, 256), st.integers(2**29, 2**36))
def test_the_largest_divisor_that_fits(effective: int, available: int) -> None:
    if training_bytes(GRAPH, 416, 416, 1, "32") > available:
        with pytest.raises(UsageError, match="for one image"):
            fitting_batch(GRAPH, 416, effective, available, "32")
        return
    batch = fitting_batch(GRAPH, 416, effective, available, "32")
    assert effective % batch == 0
    assert training_bytes(GRAPH, 416, 416, batch, "32") <= available
    larger = [size for size in range(batch + 1, effective + 1) if effective % size == 0]
    assert all(training_bytes(GRAPH, 416, 416, size, "32") > available for size in larger)
