"""Story 2, its heart: the training loop. One page; what it calls says what it does."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scaledyolo.train.guard import NonFiniteError
from scaledyolo.train.loss import LossParts, detection_loss, loss_gains
from scaledyolo.train.optim import apply_settings, step_settings

if TYPE_CHECKING:
    from scaledyolo.data.loader import Batch
    from scaledyolo.evaluate.coco import CocoMetrics
    from scaledyolo.train.training import Training

# Weight of AP50 in the figure by which the best epoch is chosen; the rest is AP (published code of the family).
FITNESS_AP50 = 0.1


def fitness(metrics: CocoMetrics) -> float:
    """The one number that decides which epoch is best: 0.1 AP50 + 0.9 AP; zero where nothing can be found."""
    value = FITNESS_AP50 * metrics.ap50 + (1 - FITNESS_AP50) * metrics.ap
    return value if math.isfinite(value) else 0.0


@dataclass
class EpochTotals:
    """Sums over the batches of one epoch."""

    batches: int = 0
    images: int = 0
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
        self.box += float(parts.box)
        self.objectness += float(parts.objectness)
        self.class_ += float(parts.class_)

    def scalars(self) -> dict[str, float]:
        """Means by name."""
        count = max(self.batches, 1)
        return {
            "box": self.box / count,
            "objectness": self.objectness / count,
            "class": self.class_ / count,
            "gradient_norm": self.gradient_norm / max(self.steps, 1),
            "images_per_s": self.images / max(self.computing + self.waiting, 1e-9),
            "waiting": self.waiting / max(self.computing + self.waiting, 1e-9),
        }


def fit(t: Training) -> Mapping[str, float]:
    """Train from where ``t.progress`` stands to the last epoch; returns the scalars of the last evaluation.

    Raises:
        NonFiniteError: the loss is no number any more and the run is told to stop then.
    """
    last: Mapping[str, float] = {}
    while t.progress.epoch < t.recipe.schedule.epochs:
        started = time.perf_counter()
        totals = train_epoch(t)
        t.progress.epoch += 1
        t.progress.batch = 0
        t.progress.seconds += time.perf_counter() - started
        last = finish_epoch(t, totals)
        if t.is_stale():
            t.journal.say(f"no better for {t.settings.patience} epochs; stopping early")
            break
    return last


def train_epoch(t: Training) -> EpochTotals:
    """All remaining batches of the current epoch."""
    totals = EpochTotals()
    t.network.train()
    t.freeze()
    t.journal.start_epoch(t.progress.epoch, len(t.loader), t.progress.batch)
    pending = 0  # batches whose gradients wait for the optimiser
    clock = time.perf_counter()
    for batch in t.batches():
        totals.waiting += time.perf_counter() - clock
        clock = time.perf_counter()
        settings = step_settings(t.recipe, t.progress.step, len(t.loader))
        apply_settings(t.optimizer, settings)
        pending += 1
        is_last = t.progress.batch + 1 == len(t.loader)
        stepping = pending >= settings.accumulate or is_last
        try:
            parts = forward_backward(t, batch, synchronise=stepping)
        except NonFiniteError as error:
            t.recover(error)
            pending = 0
            continue
        if stepping:
            totals.gradient_norm += optimiser_step(t)
            totals.steps += 1
            pending = 0
        t.progress.batch += 1
        t.progress.step += 1
        totals.add(parts, len(batch.images))
        totals.computing += time.perf_counter() - clock
        t.journal.batch(t.progress.step, {**totals.scalars(), "lr": settings.learning_rate})
        if stepping and not is_last:
            t.save_if_due()
        clock = time.perf_counter()
    t.journal.close_bar()
    return totals


def forward_backward(t: Training, batch: Batch, *, synchronise: bool) -> LossParts:
    """One batch through the network and back; gradients are added to what is there. Returns the weighted parts.

    Raises:
        NonFiniteError: the loss is infinite or no number.
    """
    images, targets = t.to_device(batch)
    with t.fabric.no_backward_sync(t.network, enabled=not synchronise):
        raw_maps = t.network(images)
        parts = detection_loss(raw_maps, targets, t.graph.detects, t.graph.strides, t.recipe.loss, t.recipe.assignment)
        parts = parts.weighted(loss_gains(t.recipe.loss, len(t.graph.detects), t.graph.num_classes))
        # The mean of the processes' gradients is taken, so each stands for as many images as there are in all.
        loss = parts.total(images=len(images) * t.fabric.world_size)
        if not bool(torch.isfinite(loss)):
            raise t.guard.explain(loss, images, targets)
        t.fabric.backward(loss)
    return parts.detached()


def optimiser_step(t: Training) -> float:
    """Update the weights and their moving average; returns the norm of the gradient."""
    norm = gradient_norm(list(t.network.parameters()))
    if not math.isfinite(norm) and not t.scales_gradients:
        t.optimizer.zero_grad(set_to_none=True)
        return 0.0
    t.optimizer.step()
    t.optimizer.zero_grad(set_to_none=True)
    t.ema.update_parameters(t.network.module)
    return norm if math.isfinite(norm) else 0.0


def gradient_norm(parameters: list[Tensor]) -> float:
    """Euclidean norm of all gradients together."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))


def finish_epoch(t: Training, totals: EpochTotals) -> Mapping[str, float]:
    """Evaluate where it is due, keep what is best, save; returns the scalars of the epoch."""
    started = time.perf_counter()
    scalars = totals.scalars()
    improved = False
    if t.evaluation_is_due():
        metrics = t.evaluate()
        scalars |= {"ap": metrics.ap, "ap50": metrics.ap50}
        improved = fitness(metrics) > t.progress.best_fitness
        if improved:
            t.progress.best_fitness, t.progress.best_epoch = fitness(metrics), t.progress.epoch
    t.progress.seconds += time.perf_counter() - started
    scalars["seconds"] = t.progress.seconds
    t.journal.end_epoch(t.progress.epoch - 1, scalars)
    t.save(improved=improved)
    return scalars
