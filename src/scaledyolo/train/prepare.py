"""From plain values to a training that is ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.training_parts import parallel_convolutions
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.data.cache import ImageSource
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.loader import LoaderConfig, TrainLoader
from scaledyolo.data.order import Shard
from scaledyolo.data.plugins import load_transform
from scaledyolo.errors import DataError, UsageError
from scaledyolo.net.initialise import initialise
from scaledyolo.net.network import Network
from scaledyolo.train.advice import anchor_advice, opening, position
from scaledyolo.train.fitted_anchors import with_fitted_anchors
from scaledyolo.train.manifest import Run, write_run
from scaledyolo.train.recipe import Recipe
from scaledyolo.train.settings import Settings
from scaledyolo.train.state import load_state
from scaledyolo.train.training import STATE_FILE, Training, is_frozen
from scaledyolo.train.transfer import transfer


def prepare(
    fabric: Fabric,
    folder: Path,
    run: Run,
    train_data: Dataset,
    val_data: Dataset | None,
    *,
    start: Checkpoint | None = None,
    resume: bool = False,
) -> Training:
    """Put a training together.

    Args:
        fabric: launched, see :func:`scaledyolo.train.processes.launch`.
        folder: of this run; it exists.
        run: the network, with the number of classes of the data, the recipes of the stages, and the settings.
        train_data: images to learn from.
        val_data: images to choose the best epoch by; None trains without evaluation.
        start: weights to start from, layer by layer where they fit.
        resume: go on from the state in ``folder``.

    Raises:
        ScaledYoloError: what does not fit, in one sentence.
    """
    check_classes(run.spec, train_data, val_data)
    state = load_state(folder / STATE_FILE) if resume else None
    fitted = None
    if not resume:
        spec, fitted = with_fitted_anchors(run.spec, run.recipes[0], train_data, start)
        run = replace(run, spec=spec)
    graph = lower(run.spec)
    network = make_network(graph, run.settings, quantised=quantise_aware(run.recipes, graph))
    report = transfer(network, start) if start is not None else None
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not is_frozen(name, run.settings.freeze))
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    shard = Shard(fabric.global_rank, fabric.world_size)
    loaders = make_loaders(train_data, run.recipes, network.graph, run.settings, shard)
    training = Training(fabric, folder, run, (train_data, val_data), loaders, network)
    if state is not None:
        training.resume(state)
        if fabric.is_global_zero:
            remove_leftovers(folder)
    elif fabric.is_global_zero:
        write_run(
            folder,
            run,
            fingerprints=training.fingerprints(),
            images={"train": len(train_data), "val": 0 if val_data is None else len(val_data)},
            report=report,
            device=fabric.device,
            processes=fabric.world_size,
        )
        training.save_state()  # so that there is something to go back to from the first batch on
    for line in opening(fabric, run, train_data, val_data):
        training.journal.say(line)
    if state is not None:
        epochs = run.recipes[-1].schedule.epochs
        training.journal.say(f"{folder}: {position(training.progress, epochs, len(training.loader))}")
        return training
    for advice in (str(report) if report else None, fitted or anchor_advice(train_data, run.spec, run.recipes[-1])):
        if advice:
            training.journal.say(advice)
    return training


def spec_for_training(spec: ModelSpec, recipe: Recipe, size: int = 0) -> ModelSpec:
    """The network as the recipe can train it, at ``size`` or the recipe's size or its own.

    Raises:
        SpecError: the size is not a multiple of its largest stride.
    """
    side = size or recipe.size
    if side:
        lower(spec).check_size(side, side)
        spec = spec.with_size(side)
    if recipe.assignment.rule == "scaled":
        # The neighbour cells of this assignment lie outside what the exponential decoding can say.
        spec = replace(spec, decoding="sigmoid-squared", scale_xy=())
    return replace(spec, resize="letterbox")


def make_network(graph: Graph, settings: Settings, *, quantised: bool = False) -> Network:
    """A fresh network, its weights determined by the seed; ``quantised`` if it is trained for 8 bits."""
    network = Network(graph, logits=True, quantised=quantised)
    torch.manual_seed(settings.seed)
    initialise(network, torch.Generator().manual_seed(settings.seed))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def quantise_aware(recipes: Sequence[Recipe], graph: Graph) -> bool:
    """Whether the stages train a network for 8 bits.

    Raises:
        UsageError: some do and some do not, or an export would not round what the training rounded.
    """
    if len({recipe.quantise_aware for recipe in recipes}) > 1:
        raise UsageError("all stages of a training need the same quantise_aware; fine-tune with it afterwards")
    parallel = parallel_convolutions(graph)
    if recipes[-1].quantise_aware and parallel:
        raise UsageError(
            f"{graph.name}: an export merges the parallel convolutions of {next(iter(parallel))} into one and rounds "
            "that, so training cannot round them one by one; leave out quantise_aware"
        )
    return recipes[-1].quantise_aware


def make_loaders(
    data: Dataset, recipes: Sequence[Recipe], graph: Graph, settings: Settings, shard: Shard
) -> list[TrainLoader]:
    """Augmented batches at the network's size for each stage, over one cache; each process gets its share.

    Raises:
        UsageError: the batch cannot be shared out evenly, or differs between the stages.
    """
    batch = recipes[-1].batch
    if any(recipe.batch != batch for recipe in recipes):
        raise UsageError("all stages of a training need the same batch")
    if batch % shard.world_size:
        raise UsageError(f"a batch of {batch} images cannot be shared by {shard.world_size} processes evenly")
    source = ImageSource(data, graph.height, cache=settings.cache)
    transform = load_transform(settings.transform) if settings.transform else None
    loaders = []
    for recipe in recipes:
        zoom = recipe.multi_scale
        config = LoaderConfig(
            batch_size=batch // shard.world_size,
            size=graph.height,
            stride=graph.max_stride,
            seed=settings.seed,
            workers=settings.workers,
            rectangular=recipe.rectangular,
            multi_scale=(1 - zoom, 1 + zoom) if zoom else None,
            first_size=recipe.first_size,
            growing_epochs=round(recipe.full_size_from * recipe.schedule.epochs),
        )
        loaders.append(TrainLoader(source, config, recipe.augmentation, shard=shard, transform=transform))
    return loaders


def remove_leftovers(folder: Path) -> None:
    """Delete the half-written files of a run that was killed while it saved."""
    for pattern in (".*.part", ".tmp*"):  # ours, and those of safetensors
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def check_classes(spec: ModelSpec, *datasets: Dataset | None) -> None:
    """Refuse data of another number of classes than the network has.

    Raises:
        DataError: names both numbers.
    """
    for dataset in datasets:
        if dataset is not None and dataset.num_classes != spec.num_classes:
            raise DataError(
                f"{dataset.source} has {dataset.num_classes} classes, the network {spec.num_classes}; "
                "name a network of the zoo or a spec file, whose class count follows the data"
            )
