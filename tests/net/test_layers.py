"""Each operation of the torch network against its definition, written as loops or in float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scaledyolo.arch.ops import Activation
from scaledyolo.net import layers

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))


def mish(x: Array) -> Array:
    return x * np.tanh(np.log1p(np.exp(x)))


ORACLES: Mapping[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "mish": mish,
    "swish": lambda x: x * sigmoid(x),
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "logistic": sigmoid,
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(np.minimum(x, 0)) - 1)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "hard_mish": lambda x: np.where(x > 0, x, np.where(x > -2, x * x / 2 + x, 0)),
}


def test_every_activation_has_an_oracle() -> None:
    assert set(ORACLES) == set(get_args(Activation))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("options", [{}, {"fresh": True}, {"fresh": True, "inference": True, "fast_mish": True}])
def test_activation_equals_its_formula(activation: Activation, options: dict[str, bool]) -> None:
    x = np.linspace(-30, 30, 2001)
    found = layers.activation_function(activation, **options)(torch.from_numpy(x.copy()))
    np.testing.assert_allclose(found.numpy(), ORACLES[activation](x), rtol=1e-9, atol=1e-12)


def test_activation_of_a_shared_value_leaves_it_alone() -> None:
    for activation in get_args(Activation):
        x = torch.linspace(-3, 3, 11)
        layers.activation_function(activation, inference=True, fast_mish=True)(x)
        assert torch.equal(x, torch.linspace(-3, 3, 11)), activation


def test_golden_values_of_the_literature() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    for form in (torch.nn.functional.mish, layers.mish_algebraic, layers.mish_in_steps):
        np.testing.assert_allclose(form(x), [-0.145647, -0.303401, 0, 0.865098, 2.986535], atol=5e-7)
    swish = layers.activation_function("swish")(x)
    np.testing.assert_allclose(swish, [-0.142278, -0.268941, 0, 0.731059, 2.857722], atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_algebraic_mish_does_not_overflow(dtype: torch.dtype) -> None:
    x = torch.tensor([-6e4, -1e3, -20.0, 20.0, 1e3, 6e4], dtype=dtype)
    expected = torch.tensor([0.0, 0.0, 0.0, 20.0, 1e3, 6e4], dtype=dtype)
    torch.testing.assert_close(layers.mish_algebraic(x), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("form", ["contiguous", "channels last", "with gaps", "a vector"])
@pytest.mark.parametrize("in_place", [False, True])
def test_mish_in_steps_is_mish_in_every_memory_order(form: str, in_place: bool, monkeypatch) -> None:
    monkeypatch.setattr(layers, "MISH_STEP", 10)
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 6, (2, 6, 5, 7)).astype(np.float32))
    if form == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif form == "with gaps":
        x = x[:, :3]
    elif form == "a vector":
        x = x.reshape(-1)
    before, expected = x.clone(), mish(x.numpy().astype(np.float64))
    found = layers.mish_in_steps(x, in_place=in_place)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if form != "with gaps":  # which has no view as a vector, and is left alone
        assert found.stride() == x.stride()
        assert (found.data_ptr() == x.data_ptr()) == in_place
    if not in_place:
        assert torch.equal(x, before)


def test_mish_in_steps_where_the_exponential_overflows() -> None:
    x = torch.tensor([-1e38, -1e30, -200.0, -88.0, 88.0, 200.0, 1e30, 1e38])
    torch.testing.assert_close(layers.mish_in_steps(x), x.clamp(min=0), atol=1e-5, rtol=0)


def test_a_trace_holds_the_form_that_fits_every_size() -> None:
    function = layers.activation_function("mish", fresh=True, inference=True, fast_mish=True)
    traced = torch.jit.trace(lambda x: function(x * 1), torch.rand(1, 2, 3, 3), check_trace=False)
    large = torch.randn(3, 2, 300, 300)
    torch.testing.assert_close(traced(large), torch.nn.functional.mish(large), atol=1e-5, rtol=1e-5)


def pool_oracle(x: Array, kernel: int, stride: int, padding: int, kind: str) -> Array:
    """Darknet's loops: windows start at -(padding // 2) and skip what lies outside."""
    height, width = ((side + padding - kernel) // stride + 1 for side in x.shape)
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            top, left = i * stride - padding // 2, j * stride - padding // 2
            window = x[max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            out[i, j] = window.max() if kind == "max" else window.mean()
    return out


@settings(deadline=None, max_examples=150)
@given(
    st.integers(2, 14), st.integers(2, 14), st.integers(1, 7), st.integers(1, 3), st.data(),
    st.sampled_from(["max", "average"]),
)  # fmt: skip
def test_pool_equals_the_loops(
    height: int, width: int, kernel: int, stride: int, data: st.DataObject, kind: str
) -> None:
    padding = data.draw(st.integers(max(0, kernel - min(height, width)), kernel - 1))
    x = np.random.default_rng(height * width).normal(-3, 1, (height, width))
    function = layers.max_pool if kind == "max" else layers.average_pool
    found = function(torch.from_numpy(x)[None, None], kernel, stride, padding)
    np.testing.assert_allclose(found[0, 0], pool_oracle(x, kernel, stride, padding, kind), rtol=1e-12)


def test_space_to_depth_orders() -> None:
    x = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    rows, columns = layers.space_to_depth(x, 2, "row"), layers.space_to_depth(x, 2, "column")
    expected = {"row": [(0, 0), (0, 1), (1, 0), (1, 1)], "column": [(0, 0), (1, 0), (0, 1), (1, 1)]}
    for found, order in ((rows, "row"), (columns, "column")):
        runs = [x[:, :, row::2, column::2] for row, column in expected[order]]
        assert torch.equal(found, torch.cat(runs, 1))
    assert torch.equal(layers.depth_to_space(rows, 2), x)


def test_reorg_is_the_historic_permutation() -> None:
    channels, height, width, block = 8, 4, 6, 2
    x = np.arange(channels * height * width)
    wide = x.reshape(channels // block**2, height * block, width * block)
    deep = [wide[:, row::block, column::block] for row in range(block) for column in range(block)]
    expected = np.concatenate(deep).reshape(channels * block**2, height // block, width // block)
    found = layers.reorg(torch.from_numpy(x).reshape(1, channels, height, width), block)
    assert np.array_equal(found[0], expected)


def test_add_keeps_the_channels_of_the_first_input() -> None:
    first, wider, narrower = torch.ones(1, 3, 2, 2), torch.full((1, 5, 2, 2), 10.0), torch.full((1, 1, 2, 2), 100.0)
    found = layers.add(first, wider, narrower)
    assert found[0, :, 0, 0].tolist() == [111.0, 11.0, 11.0]
    assert torch.equal(first, torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        ("none", 3 - 2 * 2),
        ("relu", 3 / (3 + 1e-4)),
        ("softmax", (math.exp(3) + 2 * math.exp(-2)) / (math.exp(3) + math.exp(-2))),
    ],
)
def test_weighted_sum(normalization: Literal["none", "relu", "softmax"], expected: float) -> None:
    module = layers.WeightedSum((2, 1), normalization)
    with torch.no_grad():
        module.weights.copy_(torch.tensor([[3.0], [-2.0]]))
    found = module(torch.ones(1, 4, 1, 1), torch.full((1, 4, 1, 1), 2.0))
    assert found.flatten().tolist() == pytest.approx([expected] * 4, rel=1e-6)


def test_weighted_sum_per_channel_with_other_channels() -> None:
    module = layers.WeightedSum((3, 2), "none")
    with torch.no_grad():
        module.weights.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    found = module(torch.ones(1, 2, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(1, 4, 1, 1))
    assert found.flatten().tolist() == [1 + 3 + 5, 2 + 6]
