"""Choosing by short trainings: the finalists learn from the user's images, the better ones longer, and AP decides.

Optuna keeps the trials, in a file of the run folder, and asks the pruner which of them go on; see :mod:`.halving` for
how long. What is known survives an interruption: the same command goes on in the same folder.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from scaledyolo.arch.spec import ModelSpec
from scaledyolo.design.halving import Cost, Plan
from scaledyolo.design.search import Answer, Measured, meets
from scaledyolo.errors import MissingPackageError, UsageError
from scaledyolo.evaluate.bootstrap import Interval, PairedDifference, interval_around, paired_difference
from scaledyolo.files import output_errors

MOST_FINALISTS: Final = 6
NEAR_CAPACITY: Final = 0.7  # of the most capable: below, a network would have to be very lucky
_FAILED: Final = -1.0  # reported in place of the AP of a training that diverged: below every AP

State = Literal["complete", "time", "interrupted"]


@dataclass(frozen=True)
class Entrant:
    """A finalist and the network that is trained for it."""

    measured: Measured
    spec: ModelSpec  # with the classes of the data and anchors for its boxes

    @property
    def name(self) -> str:
        """That of the candidate."""
        return self.measured.candidate.name


@dataclass(frozen=True)
class Outcome:
    """A network after so many epochs, on the validation images."""

    epochs: int
    seconds: float  # of this rung: training and judging
    ap: float | None  # None: the training diverged
    ap50: float | None = None
    ap_samples: tuple[float, ...] = ()  # AP of resamples of the images, the same ones for every network
    failure: str = ""

    @property
    def reported(self) -> float:
        """What the pruner compares."""
        return _FAILED if self.ap is None else self.ap

    @property
    def interval(self) -> Interval:
        """AP and where it would lie on other images of the same kind, at 95 %."""
        return interval_around(math.nan if self.ap is None else self.ap, np.array(self.ap_samples))


class Trainer(Protocol):
    """What trains; see :class:`scaledyolo.design.short_training.ShortTrainer`."""

    @property
    def most_epochs(self) -> int:
        """Of one training."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Plain values of everything besides the networks and the time that decides what comes out."""

    def cost(self, entrant: Entrant) -> Cost:
        """Seconds that a network takes here, measured."""

    def train(self, entrant: Entrant, folder: Path, until: int, total: int) -> Outcome:
        """Train from where the folder stands until so many of ``total`` epochs, and judge."""


@dataclass(frozen=True)
class Refinement:
    """What short trainings found."""

    entrants: tuple[Entrant, ...]  # that were trained, the choice by capacity first
    outcomes: tuple[tuple[Outcome, ...], ...]  # of each, rung after rung
    plan: Plan | None  # None: interrupted before it was made
    by_capacity: Measured
    chosen: int | None  # position of the entrant with the best AP; None: no AP could choose
    state: State
    seconds: float  # that everything took, earlier runs included
    facts: Mapping[str, Any]
    folder: Path

    @property
    def choice(self) -> Measured:
        """By AP, or by capacity where no AP could choose."""
        return self.by_capacity if self.chosen is None else self.entrants[self.chosen].measured

    def against(self, other: int) -> PairedDifference | None:
        """AP of the choice minus that of another on the same resamples, after the epochs that both were trained for."""
        if self.chosen is None:
            return None
        mine = {outcome.epochs: outcome for outcome in self.outcomes[self.chosen]}
        shared = [one for one in self.outcomes[other] if one.epochs in mine and one.ap is not None]
        if not shared:
            return None
        theirs, ours = shared[-1], mine[shared[-1].epochs]
        if theirs.ap is None or ours.ap is None:
            return None
        samples = np.array(ours.ap_samples) - np.array(theirs.ap_samples)
        return paired_difference(theirs.ap, ours.ap, samples)


def finalists(answer: Answer, most: int = MOST_FINALISTS) -> list[Measured]:
    """Networks that meet the budget and come near the most capable: the choice, then the front, then the others."""
    meeting = [one for one in answer.measured if meets(one, answer.budget, answer.device)]
    least = NEAR_CAPACITY * max((one.capacity for one in meeting), default=0.0)
    near = [one for one in meeting if one.capacity >= least and one is not answer.chosen]
    near.sort(key=lambda one: (one not in answer.front, -one.capacity, one.median_ms))
    return [answer.chosen, *near[: most - 1]]


def check_packages() -> None:
    """Refuse at once where a package of the trainings is missing.

    Raises:
        MissingPackageError: names the extra.
    """
    for name in ("optuna", "torch", "lightning_fabric", "faster_coco_eval"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingPackageError(
                f"--refine needs {name}; install it with: pip install 'scaledyolo[refine]'"
            ) from None


def refine(
    entrants: Sequence[Entrant],
    trainer: Trainer,
    minutes: float,
    parent: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> Refinement:
    """Train the finalists briefly and choose by AP; an interruption keeps what is known.

    Args:
        entrants: at least two; the choice by capacity first.
        trainer: what trains.
        minutes: that all may take; a rung is begun only if it is expected to end within them.
        parent: folder in which a folder of these trainings is made, or found again.
        tell: is told what is being done.

    Raises:
        UsageError: fewer than two networks, or not even two of them can be trained for a few epochs.
        ScaledYoloError: a training is not possible; says why.
    """
    if len(entrants) < 2:
        raise UsageError("only one network that was measured meets the budget, so there is nothing to refine")
    from scaledyolo.design.trials import Trials

    facts = {**trainer.facts, "minutes": minutes}
    folder = parent / f"refine-{_key(entrants, facts)}"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ladder = Trials(entrants, trainer, 60 * minutes, folder, tell)
    try:
        state = ladder.climb()
    except KeyboardInterrupt:
        state = "interrupted"
        tell(f"interrupted; the choice by capacity stays, and the same command goes on in {folder}")
    outcomes = ladder.outcomes()
    return Refinement(
        entrants=tuple(entrants[: len(outcomes)]),
        outcomes=tuple(map(tuple, outcomes)),
        plan=ladder.plan,
        by_capacity=entrants[0].measured,
        chosen=None if state == "interrupted" else _best(outcomes),
        state=state,
        seconds=ladder.spent(),
        facts=facts,
        folder=folder,
    )


def _best(outcomes: Sequence[Sequence[Outcome]]) -> int | None:
    """The best of those that were trained longest, if it found anything; of equals the first."""
    longest = max((one[-1].epochs for one in outcomes if one), default=0)
    complete = [row for row, one in enumerate(outcomes) if one and one[-1].epochs == longest]
    best = max(complete, key=lambda row: outcomes[row][-1].reported, default=None)
    return best if best is not None and outcomes[best][-1].reported > 0 else None


def _key(entrants: Sequence[Entrant], facts: Mapping[str, Any]) -> str:
    """The digest of everything that decides what is trained; measured times do not count."""
    text = json.dumps([[entrant.spec.to_dict() for entrant in entrants], dict(facts)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
