"""The search on a machine whose law is known: it must pick what an exhaustive look at the truth picks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.bench.timing import Timing
from scaledyolo.design.budget import Budget, parse_budget
from scaledyolo.design.candidates import Candidate, Range, feature_matrix
from scaledyolo.design.capacity import COCO_BOXES, capacities
from scaledyolo.design.device import DeviceFacts
from scaledyolo.design.profile import FEATURES
from scaledyolo.design.report import document, text, why
from scaledyolo.design.search import Table, pareto, search
from scaledyolo.design.store import Store, open_store, store_path
from scaledyolo.errors import UsageError

RANGE = Range(
    widths=tuple(Fraction(step, 8) for step in range(1, 9)),
    depths=tuple(map(Fraction, ("1/8", "1/2", "1"))),
    growths=(16, 32, 64),
)
FACTS = DeviceFacts("a thought", 2, "openvino", "1", "cpu", "float32", None)
_LAW = {"spatial_macs": 5e-9, "pointwise_macs": 9e-9, "costly_activations": 4e-7, "nodes": 4e-3, "images": 0.8}
LAW = np.array([_LAW.get(name, 0.0) for name in FEATURES])


@dataclass
class Imagined:
    """A machine that takes what a law says, times what a quirk adds to each network."""

    quirk: Callable[[Candidate], float] = lambda candidate: 1.0
    facts: DeviceFacts = FACTS
    measured: list[str] = field(default_factory=list)

    def truth(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return feature_matrix(candidates) @ LAW * np.array([self.quirk(one) for one in candidates])

    def measure(self, candidates: Sequence[Candidate]) -> list[Timing]:
        self.measured += [one.name for one in candidates]
        return [Timing((value,) * 5) for value in self.truth(candidates)]


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.of(RANGE, COCO_BOXES)


def best_within(table: Table, times: np.ndarray, limit: float) -> float:
    return float(table.capacity[times <= limit].max())


@pytest.mark.parametrize("fps", [5, 15, 30, 60])
def test_the_best_of_all_is_picked_where_the_law_holds(table, fps):
    machine = Imagined()
    answer = search(RANGE, parse_budget(fps=fps), machine, Store(FACTS))
    times = machine.truth(table.candidates)
    assert answer.chosen.capacity == pytest.approx(best_within(table, times, 1000 / fps), rel=0.01)
    assert answer.chosen.median_ms <= 1000 / fps
    assert answer.model.held_out_error < 1e-6
    assert answer.finalist_error < 1e-6


@pytest.mark.parametrize("factor", [0.75, 1.3])
def test_measurements_correct_a_law_that_does_not_hold_everywhere(table, factor):
    """Networks of half the depth take another time than others of their features, as no model would know."""
    machine = Imagined(lambda one: factor if one.network.depth == Fraction(1, 2) else 1.0)
    budget = parse_budget(fps=20)
    answer = search(RANGE, budget, machine, Store(FACTS))
    times = machine.truth(table.candidates)
    assert answer.chosen.median_ms <= budget.limit
    assert answer.chosen.capacity >= 0.97 * best_within(table, times, budget.limit)
    assert answer.finalist_error > 0


@pytest.mark.parametrize("fps", [15, 40, 60])
@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_a_family_that_is_predicted_wrong_is_corrected_by_itself(table, fps, factor):
    """Were one correction made for all, the other family would pay for it."""
    machine = Imagined(lambda one: factor if one.network.family == "tiny" and one.size <= 448 else 1.0)
    budget = parse_budget(fps=fps)
    answer = search(RANGE, budget, machine, Store(FACTS))
    times = machine.truth(table.candidates)
    assert answer.chosen.median_ms <= budget.limit
    assert answer.chosen.capacity >= 0.97 * best_within(table, times, budget.limit)


def test_noise_counts_against_a_network(table):
    """The median is within the budget, a third of the images is not."""

    class Restless(Imagined):
        def measure(self, candidates: Sequence[Candidate]) -> list[Timing]:
            return [Timing((value, value, value * 1.2)) for value in self.truth(candidates)]

    answer = search(RANGE, parse_budget(latency="40ms"), Restless(), Store(FACTS))
    assert answer.chosen.upper_ms <= 40 < answer.chosen.median_ms * 1.25
    assert answer.chosen.upper_ms > answer.chosen.median_ms


def test_the_same_budget_gives_the_same_network_without_measuring_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    machine = Imagined()
    first = search(RANGE, parse_budget(fps=30), machine, open_store(FACTS))
    count = len(machine.measured)
    assert count > 28
    assert store_path(FACTS).parent == tmp_path / "design"
    second = search(RANGE, parse_budget(fps=30), machine, open_store(FACTS))
    assert len(machine.measured) == count
    assert second.chosen.candidate.spec() == first.chosen.candidate.spec()
    assert [one.median_ms for one in second.front] == pytest.approx([one.median_ms for one in first.front])
    search(RANGE, parse_budget(fps=30), machine, open_store(FACTS, refresh=True))
    assert len(machine.measured) == 2 * count


def test_what_is_known_of_another_machine_or_damaged_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    store = open_store(FACTS)
    search(RANGE, parse_budget(fps=30), Imagined(), store)
    assert open_store(FACTS).model == store.model
    assert open_store(DeviceFacts("a thought", 2, "openvino", "2", "cpu", "float32", None)).model is None
    for content in ("", "{", "[]", '{"format": "other"}', '{"format": "scaledyolo-device/1", "device": 3}'):
        store_path(FACTS).write_text(content)
        assert open_store(FACTS).model is None
    store_path(FACTS).unlink()
    store_path(FACTS).mkdir()
    again = open_store(FACTS)
    search(RANGE, parse_budget(fps=30), Imagined(), again)  # a disk that refuses is no reason to stop
    assert again.model is not None


def test_an_impossible_time_says_the_fastest(table):
    machine = Imagined()
    times = machine.truth(table.candidates)
    fastest = table.candidates[int(times.argmin())]
    with pytest.raises(UsageError) as caught:
        search(RANGE, parse_budget(latency="0.5ms"), machine, Store(FACTS))
    assert fastest.name in str(caught.value)
    assert f"takes {times.min():.1f} ms" in str(caught.value)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_budget_at_the_fastest_is_settled_by_measuring(table, factor):
    """Predictions are off by a quarter for the fastest networks: measured they meet the budget, or do not."""
    slow = Imagined().truth(table.candidates).min()
    machine = Imagined(lambda one: factor if one.network.width <= Fraction(1, 2) and one.size <= 288 else 1.0)
    budget = parse_budget(latency=f"{0.95 * slow:.3f}ms")
    if factor < 1:
        assert search(RANGE, budget, machine, Store(FACTS)).chosen.median_ms <= budget.limit
    else:
        with pytest.raises(UsageError, match="no network of this range meets"):
            search(RANGE, budget, machine, Store(FACTS))


@pytest.mark.parametrize(
    "given_budget",
    [{"gflops": 5.0}, {"params": "3M"}, {"params": "900k"}, {"memory": "24M"}],
    ids=lambda given: next(iter(given)),
)
def test_budgets_that_are_counted(table, given_budget):
    budget = parse_budget(**given_budget)
    machine = Imagined()
    answer = search(RANGE, budget, machine, Store(FACTS))
    spent = {
        "gflops": [one.gflops for one in table.candidates],
        "params": [one.params for one in table.candidates],
        "memory": [one.inference_bytes(4) for one in table.candidates],
    }[budget.kind]
    allowed = np.array(spent) <= budget.limit
    most = table.capacity[allowed].max()
    assert answer.chosen.capacity >= 0.99 * most
    alike = allowed & (table.capacity >= 0.99 * most)
    assert answer.chosen.median_ms == pytest.approx(machine.truth(table.candidates)[alike].min())
    totals = cost(lower(answer.chosen.candidate.spec()))
    if budget.kind != "memory":
        assert {"gflops": totals.gflops, "params": totals.params}[budget.kind] <= budget.limit
    assert "the fastest" in text(answer, COCO_BOXES)


@pytest.mark.parametrize("given_budget", [{"gflops": 0.01}, {"params": "1k"}, {"memory": "10k"}])
def test_impossible_counts_say_the_least(given_budget):
    machine = Imagined()
    with pytest.raises(UsageError, match=r"no network of this range meets .*: the least of [\d,]+, yolov4-\S+, needs"):
        search(RANGE, parse_budget(**given_budget), machine, Store(FACTS))
    assert machine.measured == []


def test_the_front_holds_no_dominated_network_and_the_choice():
    answer = search(RANGE, parse_budget(fps=25), Imagined(), Store(FACTS))
    assert answer.chosen in answer.front
    assert len(answer.front) >= 5
    for one in answer.front:
        assert not any(
            other.median_ms <= one.median_ms
            and other.capacity >= one.capacity
            and (other.median_ms, other.capacity) != (one.median_ms, one.capacity)
            for other in answer.measured
        )


points = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40)


@given(points)
def test_the_front_is_exactly_what_nothing_dominates(found):
    def dominates(first: tuple[int, int], second: tuple[int, int]) -> bool:
        return first != second and first[0] <= second[0] and first[1] >= second[1]

    front = pareto(found)
    expected = {point for point in found if not any(dominates(other, point) for other in found)}
    assert {found[index] for index in front} == expected
    assert len(front) == len(expected)
    assert [found[index] for index in front] == sorted(expected)


@given(points, st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order(found, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    assert [found[index] for index in pareto(found)] == [shuffled[index] for index in pareto(shuffled)]


def test_figures_and_reasons():
    answer = search(RANGE, parse_budget(fps=30), Imagined(), Store(FACTS))
    figures = document(answer)
    assert set(figures) >= {"chosen", "front", "predictor_error", "seconds"}
    assert set(figures["chosen"]) >= {"spec", "size", "predicted_ms", "median_ms", "gflops", "params"}
    spec = answer.chosen.candidate.spec()
    assert figures["chosen"]["spec"] == spec.to_dict()
    assert figures["chosen"]["size"] == spec.size
    assert figures["chosen"]["params"] == cost(lower(spec)).params
    times = [row["median_ms"] for row in figures["front"]]
    assert times == sorted(times)
    told = "\n".join(why(answer, COCO_BOXES))
    assert answer.chosen.candidate.name in told
    assert "still has to be trained" in told
    assert f"{len(answer.table.candidates):,} networks" in told


def test_the_users_boxes_decide_the_size():
    large, small = np.array([[0.7, 0.6]]), np.array([[0.02, 0.02]])
    sizes = [
        search(RANGE, parse_budget(fps=15), Imagined(), Store(FACTS), boxes=boxes).chosen.candidate.size
        for boxes in (large, small)
    ]
    assert sizes[0] < sizes[1]
    assert capacities([Table.of(RANGE, large).candidates[0]], large)[0] > 0


@pytest.mark.parametrize(
    ("options", "kind", "limit"),
    [
        ({"fps": 50.0}, "latency", 20),
        ({"latency": "20ms"}, "latency", 20),
        ({"latency": "0.5 s"}, "latency", 500),
        ({"latency": "7.5"}, "latency", 7.5),
        ({"gflops": 3.5}, "gflops", 3.5),
        ({"params": "2.5M"}, "params", 2.5e6),
        ({"params": "800k"}, "params", 8e5),
        ({"memory": "64M"}, "memory", 64 << 20),
    ],
)
def test_budgets_are_understood(options, kind, limit):
    assert parse_budget(**options) == Budget(kind, limit)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give one budget: .* none was given"),
        ({"fps": 30.0, "latency": "20ms"}, "got --fps and --latency"),
        ({"fps": 1.0, "params": "1M", "memory": "1M"}, "got --fps and --params and --memory"),
        ({"fps": 0.0}, "above zero"),
        ({"fps": -3.0}, "above zero"),
        ({"fps": float("nan")}, "above zero"),
        ({"gflops": 0.0}, "above zero"),
        ({"latency": "soon"}, "'soon' is no budget"),
        ({"latency": "0ms"}, "above zero"),
        ({"params": "many"}, "'many' is no number"),
        ({"memory": "lots"}, "no amount of memory"),
    ],
)
def test_budgets_without_sense_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        parse_budget(**options)
