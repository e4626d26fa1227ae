"""The short trainings as trials of an Optuna study: who goes on, what is kept, and how it is taken up again.

The study lies in one file of the folder (``optuna-dashboard`` shows it). Every decision follows from what is written
there, so a run that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from scaledyolo.design.halving import Cost, Plan, least_plan, longest_plan
from scaledyolo.design.refine import Entrant, Outcome, State, Trainer
from scaledyolo.errors import FormatError, UsageError, counted
from scaledyolo.outputs.files import safe_name

JOURNAL_FILE: Final = "optuna.journal"
_SAFETY: Final = 0.9  # of the time that is left is planned with: other programs want some too
_PLAN, _COSTS, _PLANNING, _STATE = "plan", "costs", "planning_seconds", "state"  # attributes of the study


class LockstepHalving(BasePruner):
    """Stops all but the best of a rung; to be asked when every trial of the rung has reported.

    Args:
        surviving: by the step of a rung, how many trials go on after it.
    """

    def __init__(self, surviving: Mapping[int, int]) -> None:
        self._surviving = surviving

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial is not among the best of the rung that it reported last; of equals the first goes on."""
        step = trial.last_step
        if step is None or step not in self._surviving:
            return False
        values = {
            other.number: other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values
        }
        ranking = sorted(values, key=lambda number: (-values[number], number))
        return ranking.index(trial.number) >= self._surviving[step]


class Trials:
    """The rungs of one comparison.

    Args:
        entrants: the networks, those that are to be kept first.
        trainer: what trains.
        seconds: that all may take.
        folder: of the study and of the trainings; it exists.
        tell: is told what is being done.

    Raises:
        FormatError: the file of the study is damaged.
    """

    def __init__(
        self, entrants: Sequence[Entrant], trainer: Trainer, seconds: float, folder: Path, tell: Callable[[str], None]
    ) -> None:
        self._entrants, self._trainer, self._limit, self._folder = entrants, trainer, seconds, folder
        self._tell = tell
        self._study = _open_study(folder / JOURNAL_FILE)

    @property
    def plan(self) -> Plan | None:
        """The rungs, once they are decided: a run that goes on keeps those of the first."""
        known = self._study.user_attrs.get(_PLAN)
        return None if known is None else Plan(tuple(known["epochs"]), tuple(known["networks"]))

    def outcomes(self) -> list[list[Outcome]]:
        """Of each network that is trained, rung after rung."""
        return [_outcomes(trial) for trial in self._all()]

    def spent(self) -> float:
        """Seconds so far, those of runs before included."""
        rungs = (outcome.seconds for outcomes in self.outcomes() for outcome in outcomes)
        return float(self._study.user_attrs.get(_PLANNING, 0.0)) + sum(rungs)

    def climb(self) -> State:
        """Train rung after rung; says how it ended."""
        done: State | None = self._study.user_attrs.get(_STATE)
        if done is not None:
            self._tell(f"{self._folder}: these trainings were done before")
            return done
        plan = self._planned()
        self._study.pruner = LockstepHalving({epochs: plan.surviving(rung) for rung, epochs in enumerate(plan.epochs)})
        self._enter(plan.networks[0])
        for rung, epochs in enumerate(plan.epochs):
            running = self._running()
            todo = [trial for trial in running if epochs not in trial.intermediate_values]
            if rung and len(todo) == len(running) and not self._affordable(plan, rung):
                self._tell(f"the next {len(todo)} trainings would not end in time; what is known decides")
                return self._finish("time")
            for trial in todo:
                self._train(trial, epochs, plan)
            if rung + 1 < len(plan.epochs):
                self._prune(epochs)
        return self._finish("complete")

    def _planned(self) -> Plan:
        """The rungs, from the time that each network takes; measured once.

        Raises:
            UsageError: the time is too short; says how much is needed.
        """
        if self.plan is not None:
            return self.plan
        start = time.perf_counter()
        self._tell(f"measuring how fast {counted(len(self._entrants), 'network is', 'networks are')} trained here")
        costs = [self._trainer.cost(entrant) for entrant in self._entrants]
        spent = time.perf_counter() - start
        most = self._trainer.most_epochs
        plan = longest_plan(costs, _SAFETY * (self._limit - spent), most)
        if plan is None:
            least = least_plan(most)
            needed = (least.seconds(costs[: least.networks[0]]) / _SAFETY + spent) / 60
            raise UsageError(
                f"--refine {self._limit / 60:g}: {least.total} epochs of two networks take about {needed:.1f} minutes "
                "here, measuring included; give it more, or fewer images, such as --split train[:20%]"
            )
        self._study.set_user_attr(_COSTS, [asdict(cost) for cost in costs])
        self._study.set_user_attr(_PLANNING, spent)
        self._study.set_user_attr(_PLAN, asdict(plan))
        rungs = ", ".join(f"{count} for {epochs}" for count, epochs in zip(plan.networks, plan.epochs, strict=True))
        self._tell(f"training networks for epochs: {rungs}; about {plan.seconds(costs) / 60:.1f} minutes at most")
        return plan

    def _costs(self) -> list[Cost]:
        return [Cost(**cost) for cost in self._study.user_attrs[_COSTS]]

    def _enter(self, count: int) -> None:
        """One running trial for each of the first networks, in their order."""
        names = [entrant.name for entrant in self._entrants[:count]]
        for name in names[len(self._all()) :]:
            self._study.enqueue_trial({"network": name})
        while any(trial.state is TrialState.WAITING for trial in self._all()):
            self._study.ask({"network": CategoricalDistribution(names)})

    def _affordable(self, plan: Plan, rung: int) -> bool:
        """Whether a rung is expected to end in time, by how long the rungs before took beside what was expected."""
        costs = self._costs()
        expected = sum(
            (outcome.epochs - before) * costs[number].epoch + costs[number].rung
            for number, outcomes in enumerate(self.outcomes())
            for outcome, before in zip(outcomes, (0, *(one.epochs for one in outcomes)), strict=False)
        )
        taken = self.spent() - float(self._study.user_attrs[_PLANNING])
        slower = max(taken / expected, 1e-3) if expected else 1.0
        ahead = plan.rung_seconds(rung, [costs[trial.number] for trial in self._running()])
        return self.spent() + slower * ahead <= self._limit

    def _train(self, trial: FrozenTrial, epochs: int, plan: Plan) -> None:
        entrant = self._entrants[trial.number]
        outcome = self._trainer.train(entrant, self._folder / safe_name(entrant.name), epochs, plan.total)
        live = self._live(trial)
        live.set_user_attr(str(epochs), asdict(outcome))
        live.report(outcome.reported, epochs)  # last: a rung that has reported is done
        told = outcome.failure or f"AP {outcome.ap:.4f}"
        self._tell(f"{entrant.name} after {epochs} of {plan.total} epochs: {told}, {outcome.seconds:.0f} s")

    def _prune(self, epochs: int) -> None:
        """Ask the pruner about all that reported this rung last, and stop those that it does not want."""
        asked = [trial for trial in self._running() if trial.last_step == epochs]  # a run that goes on may be further
        stopped = [trial for trial in asked if self._live(trial).should_prune()]
        for trial in stopped:
            self._study.tell(trial.number, state=TrialState.PRUNED)
        if stopped:
            names = ", ".join(self._entrants[trial.number].name for trial in stopped)
            self._tell(f"no further: {names}")

    def _finish(self, state: State) -> State:
        for trial in self._running():
            self._study.tell(trial.number, trial.intermediate_values[max(trial.intermediate_values)])
        self._study.set_user_attr(_STATE, state)
        return state

    def _live(self, trial: FrozenTrial) -> Trial:
        """The trial to report to; one that was opened in an earlier run has no other way back than its id."""
        return Trial(self._study, trial._trial_id)

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self._all() if trial.state is TrialState.RUNNING]


def _open_study(path: Path) -> Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every trial otherwise
    try:
        # Links as locks need rights on Windows that users do not have.
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
        return optuna.create_study(storage=storage, study_name="refine", direction="maximize", load_if_exists=True)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:  # it checks by asserting
        raise FormatError(f"{path}: damaged ({error}); delete it, and the trainings are judged anew") from None


def _outcomes(trial: FrozenTrial) -> list[Outcome]:
    """What a network reached, rung after rung."""
    found = []
    for epochs in sorted(trial.intermediate_values):
        values = trial.user_attrs[str(epochs)]
        found.append(Outcome(**{**values, "ap_samples": tuple(values["ap_samples"])}))
    return found
