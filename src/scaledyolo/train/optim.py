"""Optimiser, schedule and moving average: pure functions of the step, and the torch objects that they drive.

The schedule is that of the Scaled-YOLOv4 and YOLOv7 code bases: SGD with Nesterov momentum over three
parameter groups, gradients accumulated to a nominal batch of 64 images, a linear warm-up by the batch and a
cosine decay by the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from scaledyolo.errors import UsageError
from scaledyolo.train.recipe import Ema, Recipe, Schedule
from scaledyolo.train.recipe import Optimiser as OptimiserConfig

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


class StepSettings(NamedTuple):
    """What the optimiser is set to before one batch."""

    learning_rate: float  # of weights and everything else
    bias_learning_rate: float  # of the biases, which warm up from above
    momentum: float
    accumulate: int  # batches whose gradients are summed before an optimiser step


class ParameterGroups(NamedTuple):
    """The parameters of a network by how they are regularised and warmed up, with their names."""

    convolution: dict[str, nn.Parameter]  # weights of convolutions and linear layers: weight decay
    bias: dict[str, nn.Parameter]  # all biases, those of normalisations included: own warm-up, no decay
    other: dict[str, nn.Parameter]  # normalisation weights, implicit vectors, fusion weights: no decay


# --- schedule ---


def accumulation(batch: int, nominal_batch: int = 64) -> int:
    """Batches of ``batch`` images that come nearest to ``nominal_batch`` (half rounds to even), at least one."""
    return max(round(nominal_batch / batch), 1)


def scaled_weight_decay(weight_decay: float, batch: int, nominal_batch: int = 64) -> float:
    """Weight decay for the number of images that a step really has, since the loss is a sum over images."""
    return weight_decay * batch * accumulation(batch, nominal_batch) / nominal_batch


def cosine_factor(epoch: float, epochs: int, final_factor: float) -> float:
    """Share of the learning rate at ``epoch`` of ``epochs``: half a cosine from 1 to ``final_factor``."""
    return (1 - final_factor) * (1 + math.cos(math.pi * epoch / epochs)) / 2 + final_factor


def linear_factor(epoch: float, epochs: int, final_factor: float) -> float:
    """Share of the learning rate at ``epoch`` of ``epochs``: a straight line from 1 to ``final_factor``."""
    return 1 - (1 - final_factor) * epoch / epochs


def step_factor(epoch: float, epochs: int, milestones: Sequence[float], milestone_factor: float) -> float:
    """Share of the learning rate at ``epoch``: times ``milestone_factor`` at each share of ``epochs`` passed."""
    return milestone_factor ** sum(epoch >= milestone * epochs for milestone in milestones)


def decay_factor(schedule: Schedule, epoch: int) -> float:
    """Share of the learning rate at the whole ``epoch``, counted from 0, after the warm-up."""
    if schedule.decay == "cosine":
        return cosine_factor(epoch, schedule.epochs, schedule.final_factor)
    if schedule.decay == "linear":
        return linear_factor(epoch, schedule.epochs, schedule.final_factor)
    return step_factor(epoch, schedule.epochs, schedule.milestones, schedule.milestone_factor)


def warmup_steps(schedule: Schedule, batches_per_epoch: int) -> int:
    """Batches that the warm-up takes."""
    return max(round(schedule.warmup_epochs * batches_per_epoch), schedule.warmup_min_steps)


def step_settings(recipe: Recipe, step: int, batches_per_epoch: int) -> StepSettings:
    """Learning rates, momentum and accumulation for batch ``step``, counted from 0 over the whole training.

    A stage that continues another counts from its first epoch, so it has no second warm-up. The warm-up ends
    at the decayed rate of its current epoch.
    """
    schedule, optimiser = recipe.schedule, recipe.optimiser
    rate = optimiser.learning_rate * decay_factor(schedule, step // batches_per_epoch)
    accumulate = accumulation(recipe.batch, optimiser.nominal_batch)
    length = warmup_steps(schedule, batches_per_epoch)
    if step >= length:
        return StepSettings(rate, rate, optimiser.momentum, accumulate)
    progress = step / length
    return StepSettings(
        learning_rate=rate * progress**schedule.warmup_power,
        bias_learning_rate=_between(schedule.warmup_bias_rate, rate, progress**schedule.warmup_power),
        momentum=_between(schedule.warmup_momentum, optimiser.momentum, progress),
        accumulate=max(round(_between(1, optimiser.nominal_batch / recipe.batch, progress)), 1),
    )


def _between(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


# --- optimiser ---


def parameter_groups(module: nn.Module) -> ParameterGroups:
    """Sort the parameters that are trained into the three groups; each stands in exactly one.

    A weight belongs to a convolution (or a linear layer) when it has an input and an output axis; that of a
    normalisation has one axis.
    """
    groups = ParameterGroups({}, {}, {})
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rpartition(".")[2]
        if leaf == "bias":
            groups.bias[name] = parameter
        elif leaf == "weight" and parameter.ndim >= 2:
            groups.convolution[name] = parameter
        else:
            groups.other[name] = parameter
    return groups


def make_optimizer(module: nn.Module, recipe: Recipe) -> Optimizer:
    """The optimiser of the recipe over the three groups, each with its ``name``.

    Its rates and momentum are set before each batch by :func:`apply_settings`.

    Raises:
        UsageError: nothing in ``module`` is to be trained.
    """
    config = recipe.optimiser
    decay = scaled_weight_decay(config.weight_decay, recipe.batch, config.nominal_batch)
    groups = [
        {"params": list(parameters.values()), "name": name, "weight_decay": decay if name == "convolution" else 0.0}
        for name, parameters in parameter_groups(module)._asdict().items()
        if parameters
    ]
    if not groups:
        raise UsageError("nothing is left to train: every parameter is frozen; freeze fewer stages")
    return _optimizer(groups, config)


def _optimizer(groups: list[dict[str, Any]], config: OptimiserConfig) -> Optimizer:
    rate, betas = config.learning_rate, (config.momentum, 0.999)
    # On a CPU torch's own choice is a loop over the tensors, 3.5 times as slow for SGD. On a GPU it is about as fast,
    # and a fused optimiser would unscale the gradients of fp16 itself, after their norm was logged.
    on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
    fused = True if on_cpu else None
    if config.name == "sgd":
        return SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)
    if config.name == "adam":
        return Adam(groups, lr=rate, betas=betas, fused=fused)
    return AdamW(groups, lr=rate, betas=betas, fused=fused)


def apply_settings(optimizer: Optimizer, settings: StepSettings) -> None:
    """Set learning rates and momentum of an optimiser made by :func:`make_optimizer`."""
    for group in optimizer.param_groups:
        is_bias = group["name"] == "bias"
        group["lr"] = settings.bias_learning_rate if is_bias else settings.learning_rate
        if "momentum" in group:
            group["momentum"] = settings.momentum
        else:
            group["betas"] = (settings.momentum, group["betas"][1])


# --- moving average ---


def ema_decay(updates: int, config: Ema) -> float:
    """Decay of update number ``updates``, counted from 1: it rises from 0 so that early weights are soon forgotten."""
    return config.decay * (1 - math.exp(-updates / config.ramp_updates))


def make_ema(module: nn.Module, config: Ema) -> AveragedModel:
    """A moving average of ``module`` that starts as its copy and is itself never trained.

    Call ``ema.update_parameters(module)`` after every optimiser step that really happened (not when a
    gradient scaler skipped it), with the bare module, unwrapped. Parameters and running statistics are
    averaged, counters are copied. The count of the updates is part of its state dict; :func:`ema_updates`
    reads it. Evaluate ``ema.module``.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - ema_decay(int(updates), config))
        else:
            torch._foreach_copy_(averaged, current)

    ema = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
    ema.requires_grad_(False)
    ema.eval()
    # AveragedModel copies at its first call and averages from the second on. The copy is made here, so that
    # the first call after an optimiser step is update 1 of the formula, and its count is one more than the
    # updates.
    ema.update_parameters(module)
    return ema


def ema_updates(ema: AveragedModel) -> int:
    """How often a moving average of :func:`make_ema` was updated."""
    return int(ema.n_averaged) - 1
