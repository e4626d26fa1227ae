"""How long which networks are trained: successive halving within a time that is given (Jamieson and Talwalkar, 2016).

All networks are trained for a few epochs, the better half goes on for twice as many, and so on until two are left. It
is one bracket of Hyperband, in lockstep: a rung is judged when all of it has been trained. Optuna's own
``SuccessiveHalvingPruner`` is the asynchronous form for many workers; with a handful of networks on one machine it lets
the first through whatever it reaches, so that the order would choose. Lockstep also says beforehand how long it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WANTED_EPOCHS: Final = 8  # of the longest training; below, fewer networks are trained instead
LEAST_EPOCHS: Final = 4  # below, nothing that tells networks apart has been learnt
_LEAST_NETWORKS: Final = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that the training of a network takes on this machine."""

    epoch: float  # one epoch at full size, saving included
    rung: float  # each time that it is taken up and judged: reading the images, an evaluation


@dataclass(frozen=True, slots=True)
class Plan:
    """The rungs, from the first to the last."""

    epochs: tuple[int, ...]  # that a network has been trained for at the end of each rung, rising
    networks: tuple[int, ...]  # that are trained in each rung, falling

    @property
    def total(self) -> int:
        """Epochs of the longest training."""
        return self.epochs[-1]

    @property
    def rises(self) -> bool:
        """Whether every rung is longer than the one before."""
        return all(before < after for before, after in zip((0, *self.epochs), self.epochs, strict=False))

    def surviving(self, rung: int) -> int:
        """How many networks go on after a rung; none after the last."""
        return self.networks[rung + 1] if rung + 1 < len(self.networks) else 0

    def seconds(self, costs: Sequence[Cost]) -> float:
        """The time that it takes at most: should the slowest networks be the better ones."""
        return sum(self.rung_seconds(rung, costs) for rung in range(len(self.epochs)))

    def rung_seconds(self, rung: int, costs: Sequence[Cost]) -> float:
        """The time that a rung takes at most when these networks may be in it."""
        added = self.epochs[rung] - (self.epochs[rung - 1] if rung else 0)
        each = sorted((added * cost.epoch + cost.rung for cost in costs), reverse=True)
        return sum(each[: self.networks[rung]])


def plan_of(networks: int, total: int) -> Plan:
    """The rungs for so many networks, of which the last ones are trained for ``total`` epochs."""
    counts = [networks]
    while counts[-1] > _LEAST_NETWORKS:
        counts.append(max(-(-counts[-1] // 2), _LEAST_NETWORKS))
    last = len(counts) - 1
    return Plan(tuple(-(-total // 2 ** (last - rung)) for rung in range(last + 1)), tuple(counts))


def longest_plan(costs: Sequence[Cost], seconds: float, most_epochs: int) -> Plan | None:
    """The longest trainings that fit into a time, of as many of the first networks as can learn something in it.

    Args:
        costs: of the networks, those that are to be kept first.
        seconds: that all may take together.
        most_epochs: of one training: what the recipe is made for.

    Returns:
        None where not even :func:`least_plan` fits.
    """
    for networks in range(len(costs), _LEAST_NETWORKS - 1, -1):
        chosen = costs[:networks]
        wanted = WANTED_EPOCHS if networks > _LEAST_NETWORKS else LEAST_EPOCHS
        plans = [plan_of(networks, total) for total in range(min(wanted, most_epochs), most_epochs + 1)]
        fitting = [plan for plan in plans if plan.rises and plan.seconds(chosen) <= seconds]
        if fitting:
            return fitting[-1]
    return None


def least_plan(most_epochs: int) -> Plan:
    """What has to fit at least: two networks for a few epochs."""
    return plan_of(_LEAST_NETWORKS, min(LEAST_EPOCHS, most_epochs))
