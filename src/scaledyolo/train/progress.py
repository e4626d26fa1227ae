"""How far a training is: plain numbers that are saved with its state."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scaledyolo.train.loss import LossParts


@dataclass
class EpochTotals:
    """Sums over the batches of one epoch."""

    batches: int = 0
    images: int = 0  # of all processes
    box: float = 0.0
    objectness: float = 0.0
    class_: float = 0.0
    gradient_norm: float = 0.0
    steps: int = 0
    waiting: float = 0.0  # seconds the loop stood still for data
    computing: float = 0.0  # seconds of forward, loss, backward and optimiser

    def add(self, parts: LossParts, images: int) -> None:
        """Count one batch."""
        self.batches += 1
        self.images += images
        # Together, because a GPU is waited for each time that a value is asked for.
        box, objectness, class_ = torch.stack((parts.box, parts.objectness, parts.class_)).tolist()
        self.box += box
        self.objectness += objectness
        self.class_ += class_

    def losses(self) -> Tensor:
        """The sums of the three parts, (3,) float64, to be averaged over the processes."""
        return torch.tensor((self.box, self.objectness, self.class_), dtype=torch.float64)

    def scalars(self) -> dict[str, float]:
        """Means by name; ``waiting`` is a share of the time."""
        count = max(self.batches, 1)
        return {
            "box": self.box / count,
            "objectness": self.objectness / count,
            "class": self.class_ / count,
            "gradient_norm": self.gradient_norm / max(self.steps, 1),
            "images_per_s": self.images / max(self.computing + self.waiting, 1e-9),
            "waiting": self.waiting / max(self.computing + self.waiting, 1e-9),
        }


@dataclass
class Progress:
    """How far a training is; all counts are of finished work."""

    epoch: int = 0  # the epoch being worked on, from 0
    batch: int = 0  # batches of it that are done
    step: int = 0  # batches since the training began, all epochs
    best_fitness: float = -1.0
    best_epoch: int = -1  # counted from 1
    seconds: float = 0.0  # training time so far, evaluation and saving included
    waiting: float = 0.0  # seconds of finished epochs in which the loop stood still for data
    computing: float = 0.0  # seconds of finished epochs of forward, loss, backward and optimiser
    class_ap: tuple[float, ...] = ()  # of the last evaluation, by which images may be weighted
    totals: EpochTotals = field(default_factory=EpochTotals)  # of the epoch being worked on

    def finish_epoch(self) -> EpochTotals:
        """Move to the next epoch; returns the sums of the one that ended."""
        totals, self.totals = self.totals, EpochTotals()
        self.epoch += 1
        self.batch = 0
        self.waiting += totals.waiting
        self.computing += totals.computing
        return totals

    @property
    def waiting_share(self) -> float:
        """Share of the training steps' time in which the loop stood still for data."""
        return self.waiting / max(self.waiting + self.computing, 1e-9)
