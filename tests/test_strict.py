"""Plain values from files that anybody may have written."""

from __future__ import annotations

import pytest
import yaml

from scaledyolo.arch.spec import MOST_REPEATS, ModelSpec, Neck, Stage
from scaledyolo.arch.zoo import find
from scaledyolo.errors import SpecError
from scaledyolo.strict import parse_json, parse_yaml


def test_deep_nesting_is_no_traceback() -> None:
    for depth in (1, 100_000):
        with pytest.raises(ValueError, match=r"deeply|Expecting"):
            parse_json("[" * depth)
        with pytest.raises(yaml.YAMLError):
            parse_yaml("[" * depth)
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    assert parse_yaml("a: [1, ~]") == {"a": [1, None]}


def test_yaml_that_repeats_itself_gives_a_short_message() -> None:
    layers = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):  # 9 to the power of 9 words
        layers.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    bomb = parse_yaml("\n".join(layers))["i"]
    values = find("yolov4-tiny").to_dict()
    for key in ("name", "size", "anchors"):
        with pytest.raises(SpecError) as caught:
            ModelSpec.from_dict(values | {key: bomb})
        assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize("depth", [-1, MOST_REPEATS + 1, 10**18])
def test_a_network_of_endless_repetitions_is_refused(depth: int) -> None:
    with pytest.raises(SpecError, match="between 0 and 1000"):
        Stage("csp", 64, depth)
    with pytest.raises(SpecError, match="between 0 and 1000"):
        Neck("csp-pan", (64,), depth)
