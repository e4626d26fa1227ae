"""Train with the memory at hand: smaller batches, more of them to an optimiser step, the same images to a step."""

from __future__ import annotations

from dataclasses import replace

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.memory import HalfOrFull, fitting_batch
from scaledyolo.train.optim import accumulation, scaled_weight_decay
from scaledyolo.train.recipe import Recipe


def fit_memory(recipe: Recipe, graph: Graph, available: int, bits: HalfOrFull, *, processes: int = 1) -> Recipe:
    """The recipe with a batch that fits into ``available`` bytes of each process.

    The images of an optimiser step, and with them the weight decay, stay exactly what they were; only the warm-up,
    which the sources count in batches, gets as many more batches as they are smaller.

    Raises:
        UsageError: not even one image fits.
    """
    per_step = recipe.batch * accumulation(recipe.batch, recipe.optimiser.nominal_batch)
    largest_side = round(graph.height * (1 + recipe.multi_scale))
    side = max(graph.max_stride, largest_side // graph.max_stride * graph.max_stride)
    # A divisor of what one process does in a step, so that whole batches make up the step.
    share = per_step // processes if per_step % processes == 0 else recipe.batch // processes
    batch = processes * fitting_batch(graph, side, share, available, bits)
    if batch >= recipe.batch:
        return recipe
    decay = scaled_weight_decay(recipe.optimiser.weight_decay, recipe.batch, recipe.optimiser.nominal_batch)
    schedule = recipe.schedule
    return replace(
        recipe,
        batch=batch,
        # With the step itself as the nominal batch, the decay needs no further scaling.
        optimiser=replace(recipe.optimiser, nominal_batch=per_step, weight_decay=decay),
        schedule=replace(schedule, warmup_min_steps=round(schedule.warmup_min_steps * recipe.batch / batch)),
    )
