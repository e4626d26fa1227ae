"""Who is trained for how long, and who is chosen: with a trainer whose learning curves and seconds are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.bench.timing import Timing
from scaledyolo.design.budget import Budget
from scaledyolo.design.halving import LEAST_EPOCHS, WANTED_EPOCHS, Cost, Plan, least_plan, longest_plan, plan_of
from scaledyolo.design.refine import Entrant, Outcome, Refinement, finalists, refine
from scaledyolo.design.refine_report import refinement_document, refinement_table, verdict
from scaledyolo.design.search import Measured, pareto
from scaledyolo.errors import FormatError, UsageError

pytest.importorskip("optuna")

NAMES = ("a", "b", "c", "d", "e", "f")
COST = Cost(epoch=1.0, rung=2.0)
IMAGES = 40


@dataclass(frozen=True)
class _Spec:
    """As much of a spec as refining reads."""

    name: str
    size: int = 64

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}


def measured(name: str, capacity: float = 50.0, ms: float = 10.0) -> Measured:
    """A network that takes exactly so long."""
    return Measured(SimpleNamespace(name=name), capacity, ms, Timing((ms,) * 5))  # type: ignore[arg-type]


def entrants(count: int = 6) -> list[Entrant]:
    return [Entrant(measured(name, 60.0 - row), _Spec(name)) for row, name in enumerate(NAMES[:count])]  # type: ignore[arg-type]


@dataclass
class Imagined:
    """Trains in no time: AP follows a curve, seconds a price that is only written down."""

    curves: dict[str, float]  # AP in the end
    cost_of: dict[str, Cost] = field(default_factory=dict)
    slower: float = 1.0  # than was measured
    most_epochs: int = 400
    width: float = 0.02  # of AP over resamples
    stop_at: int | None = None  # training that is interrupted
    diverging: tuple[str, ...] = ()
    calls: list[tuple[str, int, int]] = field(default_factory=list)
    reached: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(
        default_factory=lambda: {"recipe": {"name": "small"}, "seed": 0, "images": {"train": 80, "val": IMAGES}}
    )

    def cost(self, entrant: Entrant) -> Cost:
        return self.cost_of.get(entrant.name, COST)

    def train(self, entrant: Entrant, folder: Path, until: int, total: int) -> Outcome:
        if self.stop_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append((entrant.name, until, total))
        added = until - self.reached.get(entrant.name, 0)
        self.reached[entrant.name] = until
        price = self.cost(entrant)
        seconds = self.slower * (added * price.epoch + price.rung)
        if entrant.name in self.diverging:
            return Outcome(until, seconds, None, failure="diverged: the loss is nan")
        ap = self.curves[entrant.name] * until / total
        noise = np.random.default_rng(0).normal(0, self.width, 200)
        own = np.random.default_rng(ord(entrant.name)).normal(0, self.width / 4, 200)
        samples = tuple(np.clip(ap + noise + own, 0, 1).tolist()) if ap else (0.0,) * 200
        return Outcome(until, seconds, ap, ap, samples)


RISING = {name: 0.1 + 0.1 * row for row, name in enumerate(NAMES)}  # the last is the best, and had the least capacity


# The plan --------------------------------------------------------------------------------------------------------


def test_rungs_by_hand():
    assert plan_of(6, 20) == Plan(epochs=(5, 10, 20), networks=(6, 3, 2))
    assert plan_of(5, 9) == Plan(epochs=(3, 5, 9), networks=(5, 3, 2))
    assert plan_of(4, 8) == Plan(epochs=(4, 8), networks=(4, 2))
    assert plan_of(2, 7) == Plan(epochs=(7,), networks=(2,))
    plan = plan_of(6, 20)
    assert [plan.surviving(rung) for rung in range(3)] == [3, 2, 0]
    # Six for 5 epochs, three for 5 more, two for 10 more; 6 + 3 + 2 times judged.
    assert plan.seconds([COST] * 6) == 6 * (5 + 2) + 3 * (5 + 2) + 2 * (10 + 2)


def test_the_time_is_that_of_the_slowest_survivors():
    costs = [Cost(1.0, 0.0), Cost(2.0, 0.0), Cost(5.0, 0.0), Cost(3.0, 0.0)]
    assert plan_of(4, 8).seconds(costs) == 4 * (1 + 2 + 5 + 3) + 4 * (5 + 3)


seconds = st.floats(0.01, 100.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.builds(Cost, seconds, seconds), min_size=2, max_size=6), st.floats(1, 20_000), st.integers(4, 80))
def test_the_longest_plan_fits_and_no_longer_one_does(costs: list[Cost], available: float, most: int):
    plan = longest_plan(costs, available, most)
    if plan is None:
        assert least_plan(most).seconds(costs[:2]) > available
        return
    count = plan.networks[0]
    assert plan.rises
    assert plan.seconds(costs[:count]) <= available
    assert plan.total <= most
    assert plan.total >= (min(WANTED_EPOCHS, most) if count > 2 else LEAST_EPOCHS)
    longer = plan_of(count, plan.total + 1)
    assert plan.total == most or longer.seconds(costs[:count]) > available


# Who survives ----------------------------------------------------------------------------------------------------


def run(trainer: Imagined, folder: Path, minutes: float = 10.0, count: int = 6) -> Refinement:
    return refine(entrants(count), trainer, minutes, folder)


def test_the_better_half_goes_on_and_the_best_is_chosen(tmp_path):
    trainer = Imagined(RISING)
    found = run(trainer, tmp_path)
    assert found.plan is not None
    first, second, third = found.plan.epochs
    by_rung = {epochs: [name for name, until, _ in trainer.calls if until == epochs] for epochs in found.plan.epochs}
    assert by_rung == {first: list("abcdef"), second: list("def"), third: list("ef")}
    assert {total for _, _, total in trainer.calls} == {third}
    assert found.choice.candidate.name == "f"
    assert found.by_capacity.candidate.name == "a"
    assert found.state == "complete"
    assert [len(outcomes) for outcomes in found.outcomes] == [1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ("c", "f", "a", "e", "b", "d")])
def test_the_order_of_the_networks_decides_nothing(order: Sequence[str], tmp_path):
    """Optuna's asynchronous pruner lets the first trial through whatever it reaches; a rung in lockstep does not."""
    chosen = sorted(entrants(), key=lambda one: order.index(one.name))
    found = refine(chosen, Imagined(RISING), 10.0, tmp_path)
    assert found.choice.candidate.name == "f"
    assert {one.name: len(of) for one, of in zip(found.entrants, found.outcomes, strict=True)} == {
        "a": 1, "b": 1, "c": 1, "d": 2, "e": 3, "f": 3,
    }  # fmt: skip


def test_of_equals_the_more_capable_goes_on(tmp_path):
    found = run(Imagined(dict.fromkeys(NAMES, 0.2)), tmp_path)
    assert [len(outcomes) for outcomes in found.outcomes] == [3, 3, 2, 1, 1, 1]
    assert found.choice is found.by_capacity


def test_a_training_that_diverges_is_out_and_said(tmp_path):
    found = run(Imagined(RISING, diverging=("f",)), tmp_path)
    assert found.choice.candidate.name == "e"
    assert len(found.outcomes[5]) == 1
    assert any("diverged" in line and line.startswith("  f") for line in refinement_table(found))
    assert json.dumps(refinement_document(found)).count("diverged: the loss is nan") == 1


# The time --------------------------------------------------------------------------------------------------------


def test_the_minutes_are_kept_and_used(tmp_path):
    costs = {name: Cost(0.5 + row, 1.0) for row, name in enumerate(NAMES)}
    found = run(Imagined(RISING, costs), tmp_path, minutes=8)
    assert found.state == "complete"
    assert 0.6 * 480 <= found.seconds <= 480


def test_a_rung_that_would_not_end_in_time_is_not_begun(tmp_path):
    trainer = Imagined(RISING, slower=1.4)
    found = run(trainer, tmp_path)
    assert found.state == "time"
    assert found.seconds <= 600
    assert found.plan is not None
    assert len({until for _, until, _ in trainer.calls}) == 2
    assert found.choice.candidate.name == "f", "the best of the last rung that is whole"
    assert any("was not begun" in line for line in verdict(found))
    assert run(trainer, tmp_path).state == "time", "a run that is repeated says the same"
    assert len(trainer.calls) == 9


def test_no_training_is_longer_than_its_recipe(tmp_path):
    found = run(Imagined(RISING, most_epochs=12), tmp_path, minutes=1e4)
    assert found.plan is not None
    assert found.plan.epochs == (3, 6, 12)


def test_fewer_networks_are_trained_where_the_time_is_short(tmp_path):
    found = run(Imagined(RISING), tmp_path, minutes=0.6)
    assert found.plan is not None
    assert found.plan == Plan(epochs=(4, 8), networks=(3, 2)), "30 s; four networks would take 36, and 32 are there"
    assert found.choice.candidate.name == "c"


def test_too_few_minutes_are_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"--refine 0.1: 4 epochs of two networks take about 0\.2 minutes here.*give"):
        run(Imagined(RISING), tmp_path, minutes=0.1)


def test_one_network_alone_is_refused(tmp_path):
    with pytest.raises(UsageError, match="only one network"):
        run(Imagined(RISING), tmp_path, count=1)


# Interrupted and gone on with ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [0, 3, 6, 8, 10])
def test_an_interruption_keeps_what_is_known_and_the_same_command_goes_on(stop_at, tmp_path):
    whole = run(Imagined(RISING), tmp_path / "whole")
    trainer = Imagined(RISING, stop_at=stop_at)
    told: list[str] = []
    found = refine(entrants(), trainer, 10.0, tmp_path / "broken", told.append)
    assert found.state == "interrupted"
    assert found.choice.candidate.name == "a", "capacity chooses"
    assert sum(map(len, found.outcomes)) == stop_at
    assert "interrupted; the choice by capacity stays" in told[-1]
    assert "interrupted" in " ".join(verdict(found))
    trainer.stop_at = None
    again = run(trainer, tmp_path / "broken")
    assert again.choice.candidate.name == whole.choice.candidate.name == "f"
    assert again.outcomes == whole.outcomes
    assert len(trainer.calls) == len(set(trainer.calls)) == 11, "nothing is trained twice"


def test_other_settings_get_another_folder(tmp_path):
    one = run(Imagined(RISING), tmp_path)
    other_seed = Imagined(RISING)
    other_seed.facts["seed"] = 1
    folders = {one.folder, run(other_seed, tmp_path).folder, run(Imagined(RISING), tmp_path, minutes=11).folder}
    assert len(folders) == 3
    assert run(Imagined(RISING), tmp_path).folder == one.folder


def test_a_damaged_file_is_one_sentence(tmp_path):
    found = run(Imagined(RISING), tmp_path)
    (found.folder / "optuna.journal").write_text('{"op_code": "nonsense"}\n')
    with pytest.raises(FormatError, match=r"optuna\.journal: damaged"):
        run(Imagined(RISING), tmp_path)


# What is said ----------------------------------------------------------------------------------------------------


def test_a_clear_lead_is_called_one(tmp_path):
    found = run(Imagined(RISING), tmp_path)
    lines = verdict(found)
    assert any(line.startswith("Beside e after") and "more than the noise" in line for line in lines)
    assert any(line.startswith("Beside a after") and "more than the noise" in line for line in lines)
    assert any("By capacity alone a would have been chosen" in line for line in lines)
    assert not any("within the noise" in line for line in lines)
    values = refinement_document(found)
    assert (values["chosen_by"], values["by_capacity"], values["state"]) == ("ap", "a", "complete")
    assert [row["name"] for row in values["networks"]] == ["f", "e", "d", "c", "b", "a"]
    best, second = values["networks"][:2]
    assert best["within_noise"] is None
    assert second["within_noise"] is False
    assert second["ap_behind"] == pytest.approx(0.1, abs=1e-6)
    low, high = best["ap_interval"]
    assert low < best["ap"] < high
    assert len(best["rungs"]) == 3
    assert json.dumps(values)


def test_a_lead_within_the_noise_is_called_that(tmp_path):
    curves = {**RISING, "e": 0.5995, "f": 0.6}
    found = run(Imagined(curves, width=0.1), tmp_path)
    lines = verdict(found)
    assert any(line.startswith("Beside e after") and "cannot tell the two apart" in line for line in lines)
    rows = {row["name"]: row["within_noise"] for row in refinement_document(found)["networks"]}
    assert rows["e"] is True


def test_networks_that_were_stopped_in_doubt_are_named(tmp_path):
    curves = {**RISING, "c": 0.594, "d": 0.596, "e": 0.598, "f": 0.6}
    found = run(Imagined(curves, width=0.1), tmp_path)
    (line,) = [line for line in verdict(found) if "stopped early" in line]
    assert line.startswith("d, c were stopped early though they lay within the noise")
    assert not any("stopped early" in line for line in verdict(run(Imagined(RISING), tmp_path / "clear")))


def test_where_nothing_was_learnt_capacity_chooses(tmp_path):
    found = run(Imagined(dict.fromkeys(NAMES, 0.0)), tmp_path)
    assert found.chosen is None
    assert found.choice is found.by_capacity
    assert "so capacity chose" in verdict(found)[0]
    assert refinement_document(found)["chosen_by"] == "capacity"


# The finalists ---------------------------------------------------------------------------------------------------


def answer(points: Sequence[tuple[str, float, float]], limit: float) -> Any:
    """Measured networks (name, ms, capacity), the choice by capacity among those within the limit."""
    rows = [measured(name, capacity, ms) for name, ms, capacity in points]
    front = tuple(rows[index] for index in pareto([(one.median_ms, one.capacity) for one in rows]))
    chosen = max((one for one in rows if one.median_ms <= limit), key=lambda one: one.capacity)
    return SimpleNamespace(
        measured=rows, front=front, chosen=chosen, budget=Budget("latency", limit), device=None, table=None
    )


def test_finalists_meet_the_budget_and_come_near_the_top():
    points = [("weak", 3, 20.0), ("fast", 6, 45.0), ("dominated", 9, 44.0), ("best", 9.5, 50.0), ("slow", 11, 60.0)]
    names = [one.candidate.name for one in finalists(answer(points, 10.0))]
    assert names == ["best", "fast", "dominated"]


def test_six_finalists_at_most_the_front_first():
    points = [(f"front{index}", 1 + index, 50 + index) for index in range(5)]
    points += [(f"behind{index}", 7.0, 48 + index) for index in range(3)]
    chosen = finalists(answer(points, 10.0))
    assert [one.candidate.name for one in chosen] == ["front4", "front3", "front2", "front1", "front0", "behind2"]


def test_networks_are_paired_after_the_epochs_that_both_were_trained_for(tmp_path):
    found = run(Imagined(RISING), tmp_path)
    assert found.chosen == 5
    for row in range(5):
        difference, last = found.against(row), found.outcomes[row][-1]
        mine = next(one for one in found.outcomes[5] if one.epochs == last.epochs)
        assert difference is not None
        assert difference.difference.value == pytest.approx((mine.ap or 0) - (last.ap or 0))
    assert replace(found, chosen=None).against(0) is None
