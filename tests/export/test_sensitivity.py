"""Which layers return to float: pure functions, against brute force and networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.export.sensitivity import (
    fewest,
    most_float_layers,
    most_sensitive_first,
    noise,
)


@given(st.integers(0, 70), st.integers(1, 80))
def test_fewest_finds_the_first_that_passes_with_few_questions(most: int, first: int) -> None:
    asked: list[int] = []

    def passes(count: int) -> bool:
        asked.append(count)
        assert 1 <= count <= most
        return count >= first

    assert fewest(passes, most) == (first if first <= most else None)
    assert len(set(asked)) <= 2 * max(most, 1).bit_length() + 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=70))
def test_fewest_gives_one_that_passes_even_where_noise_breaks_the_order(losses: list[float]) -> None:
    count = fewest(lambda number: losses[number - 1] < 0.5, len(losses))
    assert count is None or losses[count - 1] < 0.5


def test_layers_are_ordered_by_noise_removed_for_each_operation() -> None:
    noises = {"big": 8.0, "small": 1.0, "silent": 0.0, "twin": 1.0}
    macs = {"big": 1000, "small": 10, "silent": 1, "twin": 10}
    assert most_sensitive_first(noises, macs) == ["small", "twin", "big", "silent"]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.floats(0, 1))
def test_at_least_the_share_stays_in_8_bits(values: list[int], share: float) -> None:
    macs = {str(index): value for index, value in enumerate(values)}
    count = most_float_layers(list(macs), macs, share)
    assert sum(values[count:]) >= share * sum(values)
    assert count == len(values) or sum(values[count + 1 :]) < share * sum(values)


def test_noise_is_the_share_of_the_variance() -> None:
    random = np.random.default_rng(0)
    expected = [[random.normal(3, 2, (1, 4, 50, 50)).astype(np.float32)] for _ in range(3)]
    found = [[(item + random.normal(0, 0.2, item.shape)).astype(np.float32) for item in maps] for maps in expected]
    assert noise(found, expected) == pytest.approx(0.01, rel=0.05)
    assert noise(expected, expected) == 0
    assert noise([[np.full((1, 2), np.nan, np.float32)]], [[np.ones((1, 2), np.float32)]]) == np.inf
