"""Budgets of time: the ladder, the controller on synthetic timings, and a detector that keeps to one."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaledyolo import Detector, budgeted
from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.scaling import scaled
from scaledyolo.arch.subnet import cut_graph
from scaledyolo.arch.zoo import find
from scaledyolo.budget import CHEAPER, SMALLEST_SHARE, Controller, budget_milliseconds, ladder
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.engines.compiled_cache import CompiledCache
from scaledyolo.errors import UsageError
from scaledyolo.subnet import TRAINED_SUBNETS, subnet_checkpoint
from scaledyolo.weights import random_weights

P7 = lower(find("yolov4-p7"))
EVERY = ("without-head-p7", "without-head-p6", "without-stage-p7", "without-stage-p6")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("15ms", 15), ("0.2 s", 200), ("30fps", 100 / 3), (7, 7), (2.5, 2.5), ("40FPS", 25), ("15", 15)],
)
def test_budgets_are_read(text, milliseconds):
    assert budget_milliseconds(text) == pytest.approx(milliseconds)


@pytest.mark.parametrize("text", ["ms", "-3ms", "0ms", 0, -1, math.nan, math.inf, "1 hour"])
def test_what_is_no_budget_is_said(text):
    with pytest.raises(UsageError, match="budget"):
        budget_milliseconds(text)


# The ladder


def test_the_ladder_is_that_of_figure_5():
    rungs = ladder(P7, 1536, 1536, EVERY[:2])
    assert (rungs[0].subnet, rungs[0].height) == ("", 1536)
    by_side = {rung.height: rung.subnet for rung in rungs}
    # One level less for each halving, by the nearest power of two: high, middle and low resolution.
    assert by_side[1280] == ""
    assert by_side[896] == by_side[768] == "without-head-p7"
    assert by_side[384] == "without-head-p6"
    for rung in rungs:
        part = cut_graph(P7, rung.subnet) if rung.subnet else P7
        assert rung.gflops == pytest.approx(cost(part, rung.height, rung.width).gflops)
        assert rung.levels == len(part.heads)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["yolov4-p7", "yolov4-p6", "yolov4-csp", "yolov4-tiny"]),
    st.integers(1, 10),
    st.integers(1, 10),
    st.booleans(),
)
def test_every_rung_is_cheaper_than_all_before_and_fits_its_network(name, rows, columns, approximate):
    graph = lower(find(name))
    level = max(graph.strides).bit_length() - 1
    subnets = (f"without-head-p{level}", *((f"without-stage-p{level}",) if approximate else ()))
    rungs = ladder(graph, rows * graph.max_stride, columns * graph.max_stride, subnets)
    assert (rungs[0].height, rungs[0].width) == (rows * graph.max_stride, columns * graph.max_stride)
    for above, below in itertools.pairwise(rungs):
        assert below.gflops <= CHEAPER * above.gflops
        assert below.height * below.width <= above.height * above.width
    for rung in rungs:
        part = cut_graph(graph, rung.subnet) if rung.subnet else graph
        part.check_size(rung.height, rung.width)
        longest = max(rung.height, rung.width)
        assert longest >= SMALLEST_SHARE * max(rungs[0].height, rungs[0].width) or longest == part.max_stride


# The controller

EXPECTED = (100.0, 60.0, 30.0, 15.0, 8.0)


def drive(controller: Controller, slowdown: Any, images: int) -> list[int]:
    """The rung of each image, where an image takes what was expected times ``slowdown(number)``."""
    shown = []
    for number in range(images):
        shown.append(controller.current)
        controller.observe(controller.expected[controller.current] * slowdown(number))
    return shown


@given(st.floats(1, 200))
def test_it_starts_on_the_best_that_fits(budget):
    start = Controller(budget, EXPECTED).current
    fitting = [index for index, value in enumerate(EXPECTED) if value <= budget]
    assert start == (fitting[0] if fitting else len(EXPECTED) - 1)


@settings(deadline=None, max_examples=60)
@given(st.floats(10, 120), st.floats(0.3, 4), st.floats(0, 0.04), st.integers(0, 99))
@example(budget=64.875, slowdown=0.62109375, noise=0.01171875, seed=2)  # climbs when it looked as if it would rest
def test_at_a_constant_speed_it_comes_to_rest_within_the_budget(budget, slowdown, noise, seed):
    random = np.random.default_rng(seed)
    controller = Controller(budget, EXPECTED)
    shown = drive(controller, lambda _: slowdown * (1 + noise * random.uniform(-1, 1)), 2000)
    rest = shown[-1]
    # Where noise hides whether a better rung fits, the climb may come late; it is not taken back.
    assert shown[-500:] == sorted(shown[-500:], reverse=True)
    assert controller.changes <= 3
    assert rest == len(EXPECTED) - 1 or EXPECTED[rest] * slowdown * (1 - noise) <= budget
    # Nothing clearly better is left unused.
    assert not [index for index in range(rest) if EXPECTED[index] * slowdown * (1 + noise) <= 0.9 * budget]


def test_it_follows_a_machine_that_slows_and_recovers():
    controller = Controller(65, EXPECTED)
    assert drive(controller, lambda _: 1, 100) == [1] * 100
    slow = drive(controller, lambda _: 2.5, 200)
    assert slow[30:] == [3] * 170  # 30 x 2.5 = 75 is too much; it is noticed within the window
    back = drive(controller, lambda _: 1, 400)
    assert back[30:] == [1] * 370
    assert controller.changes == 2


def test_one_slow_image_changes_nothing():
    controller = Controller(65, EXPECTED)
    shown = drive(controller, lambda number: 50 if number % 7 == 3 else 1, 500)
    assert shown == [1] * 500


def test_a_climb_that_fails_is_tried_ever_more_rarely():
    """The better rung is slower than it was measured: a rate that no median can foresee."""
    controller = Controller(65, EXPECTED)

    def slowdown(_: int) -> float:
        return 1.5 if controller.current == 1 else 1.0

    shown = drive(controller, slowdown, 20_000)
    climbs = [number for number, (one, other) in enumerate(itertools.pairwise(shown)) if other < one]
    gaps = np.diff(climbs)
    assert len(climbs) < 12  # without the longer holds it would be 250
    assert all(later > 1.3 * earlier for earlier, later in itertools.pairwise(gaps[:5]))
    assert shown.count(2) > 0.97 * len(shown)


@given(st.lists(st.floats(0.01, 500), min_size=1, max_size=300), st.floats(5, 150))
def test_whatever_the_times_a_rung_is_shown_and_a_change_needs_evidence(times, budget):
    controller = Controller(budget, EXPECTED)
    changes = 0
    for value in times:
        before = controller.current
        after = controller.observe(value)
        assert after == controller.current
        assert 0 <= after < len(EXPECTED)
        changes += after != before
    assert controller.changes == changes <= len(times) // Controller.FEWEST


@settings(deadline=None)
@given(st.floats(0.2, 5), st.floats(1.01, 3))
def test_a_slower_machine_never_ends_on_a_better_rung(slowdown, more):
    rests = []
    for factor in (slowdown, slowdown * more):
        controller = Controller(50, EXPECTED)
        drive(controller, lambda _, factor=factor: factor, 1500)
        rests.append(controller.current)
    assert rests[0] <= rests[1]


def test_one_rung_is_enough():
    controller = Controller(10, (20.0,))
    assert drive(controller, lambda _: 3, 100) == [0] * 100
    assert controller.changes == 0
    assert controller.median == 60


# A detector


@pytest.fixture(scope="module")
def narrow() -> Checkpoint:
    spec = scaled(find("yolov4-p6"), width=1 / 16, depth=1 / 16, size=256, name="narrow").with_classes(2)
    graph = lower(spec)
    weights = random_weights(graph, np.random.default_rng(0))
    return Checkpoint(graph=graph, weights=weights, class_names=("cat", "dog"), spec=spec)


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Detectors take a millisecond for each 4096 pixels of their input, times the factor; nothing is measured."""
    state: dict[str, Any] = {"factor": 1.0, "measured": []}

    def fake(detector: Detector) -> float:
        state["measured"].append((detector.network.facts.name, detector.height))
        return detector.height * detector.width / 4096 * state["factor"]

    monkeypatch.setattr(budgeted, "measure", fake)
    return state


def test_the_best_that_fits_is_used_and_measured_once(narrow, speed, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    options = {"engine": "onnxruntime", "threads": 1}
    detector = Detector(narrow, budget="10ms", **options)
    assert detector.budget is not None
    assert (detector.budget.rung.height, detector.budget.rung.subnet) == (192, "")  # 9 ms; 256 pixels would be 16
    first = list(speed["measured"])
    assert first[0] == ("narrow", 64) or first[0][0].startswith("narrow-without-head")
    assert len(set(first)) == len(first)
    again = Detector(narrow, budget="10ms", **options)
    assert again.budget.rung == detector.budget.rung
    assert speed["measured"] == first, "remembered on disk"
    Detector(replace(narrow, weights=random_weights(narrow.graph, np.random.default_rng(1))), budget="10ms", **options)
    assert len(speed["measured"]) == 2 * len(first), "another network is measured for itself"
    image = np.zeros((50, 60, 3), np.uint8)
    assert len(detector([image, image])) == 2
    assert detector.times.images == 2
    assert "budget 10 ms an image: the whole network at 192x192, 9.0 ms measured" in str(detector.budget)


def test_an_impossible_budget_names_the_fastest_there_is(narrow, speed, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"0\.5 ms an image cannot be kept.*fastest there is, .* at 64x64, takes 1 ms"):
        Detector(narrow, budget="0.5ms", engine="onnxruntime")
    speed["factor"] = 0.25  # the machine was busy when it was measured: it is measured again before a refusal
    assert Detector(narrow, budget="0.5ms", engine="onnxruntime").budget is not None


def test_approximate_parts_are_used_where_they_learned_along_or_are_asked_for(narrow):
    exact = ("without-head-p6", "without-head-p5", "without-head-p4")
    assert budgeted.usable_subnets(narrow, None) == exact
    trained = replace(narrow, provenance={TRAINED_SUBNETS: "without-stage-p5, without-stage-p6-zeros"})
    assert budgeted.usable_subnets(trained, None) == (*exact, "without-stage-p6", "without-stage-p5")
    assert len(budgeted.usable_subnets(narrow, "all")) == 6
    assert budgeted.usable_subnets(subnet_checkpoint(narrow, "without-stage-p6"), "without-stage-p6") == ()


def test_one_named_part_at_any_size(narrow, speed):
    detector = Detector(narrow, budget=5, subnet="without-stage-p6", engine="onnxruntime")
    assert detector.network.facts.name == "narrow-without-stage-p6"
    assert {rung.subnet for rung in detector.budget.rungs} == {""}
    assert detector.budget.rung.height == 128  # 4 ms; a multiple of 32 now
    with pytest.raises(UsageError, match="leave the ensemble out"):
        Detector(narrow, budget=5, ensemble=[narrow])


def test_it_changes_over_when_the_machine_slows(narrow, speed, monkeypatch):
    detector = Detector(narrow, budget="200ms", engine="onnxruntime", threads=1)
    assert detector.budget.rung.height == 256
    image, run = np.zeros((64, 64, 3), np.uint8), Detector.candidates

    def slow(self: Detector, images: Any) -> Any:
        if self.budget is None and self.height == 256:
            time.sleep(0.25)
        return run(self, images)

    monkeypatch.setattr(Detector, "candidates", slow)
    for _ in range(1 + Controller.FEWEST):
        detector(image)
    assert detector.budget.rung.height < 256
    assert "1 changes so far" in str(detector.budget)


def test_an_exported_network_has_no_budget(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="an exported network is fixed; a budget needs the checkpoint"):
        Detector(tmp_path / "model.onnx", budget="5ms")


def test_detect_keeps_a_budget(narrow, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    save_checkpoint(tmp_path / "narrow.safetensors", narrow)
    from PIL import Image

    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "black.png")
    words = ["detect", str(tmp_path / "black.png"), "--model", str(tmp_path / "narrow.safetensors"), "--save", "none"]
    assert main([*words, "--budget", "60s", "--threads", "1"]) == 0
    assert "budget 6e+04 ms an image: the whole network at 256x256" in capsys.readouterr().out
    assert main([*words, "--budget", "0.00001ms"]) == 2
    told = capsys.readouterr().err
    assert "the fastest there is" in told
    assert told.count("\n") == 1
    assert Path(CompiledCache().folder).is_dir()
