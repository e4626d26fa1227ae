"""Story 2, its heart: the training loop. One page; what it calls says what it does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scaledyolo.errors import counted
from scaledyolo.train.guard import NonFiniteError
from scaledyolo.train.loss import LossParts, detection_loss, loss_gains
from scaledyolo.train.machine import peak_memory
from scaledyolo.train.optim import apply_settings, step_settings
from scaledyolo.train.progress import EpochTotals

if TYPE_CHECKING:
    from scaledyolo.arch.graph import Graph
    from scaledyolo.data.loader import Batch
    from scaledyolo.evaluate.coco import CocoMetrics
    from scaledyolo.train.recipe import Loss
    from scaledyolo.train.training import Training

# Weight of AP50 in the figure by which the best epoch is chosen; the rest is AP (published code of the family).
FITNESS_AP50 = 0.1


def fitness(metrics: CocoMetrics) -> float:
    """The one number that decides which epoch is best: 0.1 AP50 + 0.9 AP; zero where nothing can be found."""
    value = FITNESS_AP50 * metrics.ap50 + (1 - FITNESS_AP50) * metrics.ap
    return value if math.isfinite(value) else 0.0


def fit(t: Training, *, until: int | None = None) -> Mapping[str, float]:
    """Train from where ``t.progress`` stands to the last epoch; returns the scalars of the last one.

    Args:
        t: what is trained.
        until: stop when so many epochs are done, in the middle of the schedule; a resume goes on from there.

    Raises:
        NonFiniteError: the loss is no number any more and the run is told to stop then.
        ProcessError: another process of the training did not come.
    """
    last: Mapping[str, float] = {}
    end = t.recipes[-1].schedule.epochs
    while t.progress.epoch < (end if until is None else min(until, end)):
        started = time.perf_counter()
        t.processes.meet(f"the beginning of epoch {t.progress.epoch + 1}")
        train_epoch(t)
        totals = t.progress.finish_epoch()
        t.progress.seconds += time.perf_counter() - started
        last = finish_epoch(t, totals)
        if t.is_stale():
            t.journal.say(f"no better for {counted(t.settings.patience, 'epoch')}; stopping early")
            break
    t.journal.say(farewell(t))
    t.journal.close()
    return last


def train_epoch(t: Training) -> None:
    """All remaining batches of the current epoch, counted in ``t.progress``; however it ends, nothing is left open."""
    t.network.train()
    t.freeze()
    t.journal.start_epoch(t.progress.epoch, len(t.loader), t.progress.batch)
    try:
        with closing(t.batches()) as batches:
            train_on(t, batches)
    finally:
        t.journal.close_bar()


def train_on(t: Training, batches: Iterable[Batch]) -> None:
    """Learn from the batches, one after the other; the last of an epoch always ends with an optimiser step."""
    totals = t.progress.totals
    pending = 0  # batches whose gradients wait for the optimiser
    clock = time.perf_counter()
    for batch in batches:
        totals.waiting += time.perf_counter() - clock
        clock = time.perf_counter()
        settings = step_settings(t.recipe, t.progress.step, len(t.loader))
        apply_settings(t.optimizer, settings)
        is_last = t.progress.batch + 1 == len(t.loader)
        stepping = pending + 1 >= settings.accumulate or is_last
        try:
            with t.processes.waiting(f"batch {t.progress.batch + 1} of epoch {t.progress.epoch + 1}"):
                parts = forward_backward(t, batch, synchronise=stepping)
                norm = optimiser_step(t, batch) if stepping else None
        except NonFiniteError as error:
            t.recover(error)
            pending, clock = 0, time.perf_counter()
            continue
        pending = 0 if stepping else pending + 1
        if norm is not None:
            totals.gradient_norm += norm
            totals.steps += 1
        t.progress.batch += 1
        t.progress.step += 1
        totals.add(parts, len(batch.images) * t.processes.count)
        totals.computing += time.perf_counter() - clock
        t.journal.batch(t.progress.step, {**totals.scalars(), "lr": settings.learning_rate})
        if stepping and not is_last:
            t.save_if_due()
        clock = time.perf_counter()


def forward_backward(t: Training, batch: Batch, *, synchronise: bool) -> LossParts:
    """One batch through the network and back; gradients are added to what is there. Returns the weighted parts.

    Raises:
        NonFiniteError: the loss is infinite or no number.
    """
    images, targets = t.to_device(batch)
    subnets = t.subnets_of_step()
    share = 1 / (1 + len(subnets))
    with t.fabric.no_backward_sync(t.network):
        for subnet in subnets:
            with t.fabric.autocast():
                raw_maps = subnet(t.bare, images)
            backward(t, raw_maps, images, targets, subnet.graph, subnet.loss_config(t.recipe.loss), share)
    with t.fabric.no_backward_sync(t.network, enabled=not synchronise):
        parts = backward(t, t.network(images), images, targets, t.graph, t.recipe.loss, share)
    return parts.detached()


def backward(
    t: Training, raw_maps: list[Tensor], images: Tensor, targets: Tensor, graph: Graph, config: Loss, share: float
) -> LossParts:
    """The loss of raw maps, ``share`` of it back through the network that made them; returns its weighted parts.

    Raises:
        NonFiniteError: the loss is infinite or no number.
    """
    mean_count = t.processes.mean if t.processes.count > 1 else None
    parts = detection_loss(
        raw_maps, targets, graph.detects, graph.strides, config, t.recipe.assignment, mean_count=mean_count
    )
    parts = parts.weighted(loss_gains(config, len(graph.detects), graph.num_classes))
    # The mean of the processes' gradients is taken, so each stands for as many images as there are in all.
    loss = parts.total(images=len(images) * t.processes.count) * share
    if not t.processes.all_agree(bool(torch.isfinite(loss)), loss.device):
        raise t.guard.explain(loss, images, targets)
    t.fabric.backward(loss)
    return parts


def optimiser_step(t: Training, batch: Batch) -> float:
    """Update the weights and their moving average; returns the norm of the gradient.

    Raises:
        NonFiniteError: the gradient is infinite or no number, and no scaler is there to deal with it.
    """
    scale = t.gradient_scale()
    norm = gradient_norm(list(t.bare.parameters())) / scale
    if not math.isfinite(norm) and not t.scales_gradients:
        raise t.guard.explain_gradient(*t.to_device(batch))
    t.optimizer.step()
    t.optimizer.zero_grad(set_to_none=True)
    # A scaler lowers its scale exactly when it left the step out.
    if t.gradient_scale() >= scale:
        t.ema.update_parameters(t.bare)
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
    totals.box, totals.objectness, totals.class_ = t.processes.mean(totals.losses().to(t.loss_device)).tolist()
    scalars = totals.scalars()
    improved = False
    if t.evaluation_is_due():
        with t.processes.waiting(f"the evaluation of epoch {t.progress.epoch}"):
            metrics = t.evaluate()
        scalars |= {"ap": metrics.ap, "ap50": metrics.ap50}
        t.progress.class_ap = tuple(metrics.class_ap.tolist())
        improved = fitness(metrics) > t.progress.best_fitness
        if improved:
            t.progress.best_fitness, t.progress.best_epoch = fitness(metrics), t.progress.epoch
    t.progress.seconds += time.perf_counter() - started
    scalars["seconds"] = t.progress.seconds
    t.journal.end_epoch(t.progress.epoch - 1, scalars)
    t.save(improved=improved)
    return scalars


def farewell(t: Training) -> str:
    """The last line of a run: how long it took, what it took, how much of the time it stood still for data."""
    minutes, waited = t.progress.seconds / 60, 100 * t.progress.waiting_share
    line = f"{counted(t.progress.epoch, 'epoch')} in {minutes:.1f} min; peak memory {peak_memory() / 2**30:.2f} GiB"
    if t.fabric.device.type == "cuda":
        line += f", on the GPU {torch.cuda.max_memory_allocated(t.fabric.device) / 2**30:.2f} GiB"
    return f"{line}; {waited:.1f} % of the training time was spent waiting for data"
