"""A training put together: network, data, optimiser, moving average, journal, and where it stands.

:func:`prepare` builds it from plain settings; :func:`scaledyolo.train.loop.fit` runs it.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.data.cache import CacheKind, ImageSource
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.loader import LoaderConfig, TrainLoader
from scaledyolo.data.order import Shard
from scaledyolo.errors import DataError, UsageError
from scaledyolo.evaluate.coco import CocoMetrics, coco_metrics
from scaledyolo.evaluate.protocols import TRAINING
from scaledyolo.evaluate.run import ground_truth, predict
from scaledyolo.net.initialise import initialise
from scaledyolo.net.network import Network
from scaledyolo.strict import to_mapping
from scaledyolo.train.guard import Guard, NonFiniteError
from scaledyolo.train.journal import Journal, open_services, write_manifest
from scaledyolo.train.optim import make_ema, make_optimizer
from scaledyolo.train.recipe import Recipe
from scaledyolo.train.state import Progress, SavedState, load_state, save_state
from scaledyolo.train.transfer import Transfer, transfer

if TYPE_CHECKING:
    from scaledyolo.data.loader import Batch

Precision = Literal["32", "bf16", "16"]
OnNonFinite = Literal["stop", "rollback"]

STATE_FILE = "state.safetensors"
LAST_FILE = "last.safetensors"
BEST_FILE = "best.safetensors"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a training is run; what is learned and how is in the recipe."""

    folder: Path  # of this run; made by the caller
    seed: int = 0
    device: str = "auto"
    devices: int = 1  # processes on this machine
    nodes: int = 1
    precision: Precision = "bf16"
    workers: int = 1  # threads that prepare data
    cache: CacheKind = "ram"
    evaluate_every: int = 1  # epochs; the last epoch is always evaluated
    patience: int = 0  # epochs without a better one after which to stop; 0: never
    save_every: float = 300.0  # seconds between saves within an epoch; every epoch is saved anyway
    on_nonfinite: OnNonFinite = "stop"
    freeze: int = 0  # backbone stages that stay as they are, the stem included
    compile: bool = False
    services: tuple[str, ...] = ()
    quiet: bool = False


class Training:
    """Everything that the loop touches; made by :func:`prepare`."""

    def __init__(
        self,
        fabric: Fabric,
        spec: ModelSpec,
        recipe: Recipe,
        settings: Settings,
        data: tuple[Dataset, Dataset | None],
        loader: TrainLoader,
        network: Network,
    ) -> None:
        self.fabric, self.spec, self.recipe, self.settings, self.loader = fabric, spec, recipe, settings, loader
        self.train_data, self.val_data = data
        self.graph = network.graph
        self.ema = make_ema(network, recipe.ema)
        self.guard = Guard(network, settings.folder)
        compiled = cast("torch.nn.Module", torch.compile(network)) if settings.compile else network
        self.network, self.optimizer = fabric.setup(compiled, make_optimizer(network, recipe))
        self.bare = network
        self.progress = Progress(epoch=recipe.schedule.first_epoch)
        self.progress.step = self.progress.epoch * len(loader)
        services = open_services(settings.services, settings.folder) if fabric.is_global_zero else []
        self.journal = Journal(
            settings.folder, recipe.schedule.epochs, services, settings.quiet, first_rank=fabric.is_global_zero
        )
        self._saved_at = time.monotonic()

    # The loop's view ----------------------------------------------------------------------------------------------

    @property
    def scales_gradients(self) -> bool:
        """Whether a gradient scaler deals with gradients that overflow (float16)."""
        return self.settings.precision == "16"

    def batches(self) -> Iterator[Batch]:
        """The remaining batches of the current epoch; its last epochs go without mixing images, as the recipe says."""
        schedule = self.recipe.schedule
        plain = self.progress.epoch >= schedule.epochs - schedule.plain_epochs
        augmentation = self.recipe.augmentation.without_mixing() if plain else None
        return self.loader.epoch(self.progress.epoch, start_batch=self.progress.batch, augmentation=augmentation)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, height, width) float32 in [0, 1], channels last, and targets (n, 6), on the device."""
        images = torch.from_numpy(batch.images).to(self.fabric.device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last).float().div_(255)
        return images, torch.from_numpy(batch.targets).to(self.fabric.device, non_blocking=True)

    def freeze(self) -> None:
        """Keep the running statistics of frozen stages as they are."""
        for name, module in self.bare.named_modules():
            if is_frozen(name, self.settings.freeze):
                module.eval()

    def evaluation_is_due(self) -> bool:
        """Whether the epoch that just ended is to be evaluated."""
        is_last = self.progress.epoch == self.recipe.schedule.epochs
        return self.val_data is not None and (is_last or self.progress.epoch % self.settings.evaluate_every == 0)

    def is_stale(self) -> bool:
        """Whether too many epochs passed without a better one."""
        patience = self.settings.patience
        return patience > 0 and self.progress.epoch - max(self.progress.best_epoch, 0) >= patience

    def evaluate(self) -> CocoMetrics:
        """COCO metrics of the moving average on the validation images, each seen by exactly one process."""
        assert self.val_data is not None
        shard = range(self.fabric.global_rank, len(self.val_data), self.fabric.world_size)
        found = predict(
            self.val_data,
            self._run_ema,
            self.graph.detects,
            self.graph.height,
            self.graph.width,
            TRAINING,
            resize=self.graph.resize,
            batch=min(self.recipe.batch, 16),
            indices=shard,
        )
        return coco_metrics(ground_truth(self.val_data), self._gather(found))

    def _gather(self, found: Any) -> Any:
        if self.fabric.world_size == 1:
            return found
        gathered: list[Any] = [None] * self.fabric.world_size
        columns = (found.image_index, found.boxes_xyxy, found.scores, found.class_ids)
        torch.distributed.all_gather_object(gathered, columns)
        index, boxes, scores, classes = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        return type(found)(found.num_images, found.num_classes, index, boxes, scores, classes)

    @torch.inference_mode()
    def _run_ema(self, batch: np.ndarray) -> list[np.ndarray]:
        images = torch.from_numpy(batch).to(self.fabric.device).contiguous(memory_format=torch.channels_last)
        with self.fabric.autocast():
            maps = self.ema.module(images)
        return [raw.float().cpu().numpy() for raw in maps]

    # Saving and going back ----------------------------------------------------------------------------------------

    def save(self, *, improved: bool = False) -> None:
        """Write best (if it improved), last, and the state, in this order: a kill in between loses nothing."""
        self._saved_at = time.monotonic()
        if not self.fabric.is_global_zero:
            return
        model = self.checkpoint()
        if improved:
            save_checkpoint(self.settings.folder / BEST_FILE, model)
        save_checkpoint(self.settings.folder / LAST_FILE, model)
        save_state(
            self.settings.folder / STATE_FILE,
            network=self.bare,
            ema=self.ema,
            optimizer=self.optimizer,
            progress=self.progress,
            facts=self.facts(),
            scaler=self._scaler_state(),
        )

    def save_if_due(self) -> None:
        """Save within an epoch when the last save is long ago; call only when no gradient is pending."""
        if time.monotonic() - self._saved_at > self.settings.save_every:
            self.save()

    def checkpoint(self) -> Checkpoint:
        """The moving average as a model that detects."""
        weights = {
            name: value.detach().to("cpu", torch.float32, copy=True).numpy()
            for name, value in self.ema.module.state_dict().items()
        }
        return Checkpoint(
            graph=self.graph,
            weights=weights,
            class_names=self.train_data.names,
            spec=self.spec,
            category_ids=self.train_data.original_ids,
            provenance={
                "source": "trained with scaledyolo",
                "recipe": self.recipe.name,
                "epochs": str(self.progress.epoch),
                "seed": str(self.settings.seed),
                "data": self.train_data.source,
                "data_fingerprint": self.train_data.fingerprint,
            },
        )

    def facts(self) -> dict[str, Any]:
        """What a resumed run compares."""
        return {
            "spec": self.spec.to_dict(),
            "recipe": to_mapping(self.recipe),
            "seed": self.settings.seed,
            "data_fingerprint": self.train_data.fingerprint,
        }

    def resume(self, state: SavedState) -> None:
        """Go on from a saved state.

        Raises:
            DataError: the training images or their boxes changed since.
            UsageError: model, recipe or seed differ from those of the saved run.
        """
        mine = self.facts()
        if state.facts["data_fingerprint"] != mine["data_fingerprint"]:
            raise DataError(
                f"{state.path}: the training data changed since this run began; restore it, or start a new run from "
                f"{LAST_FILE} with --weights"
            )
        for key, what in (("spec", "the model"), ("recipe", "the recipe"), ("seed", "the seed")):
            if state.facts[key] != mine[key]:
                raise UsageError(f"{state.path}: {what} differs from that of the run; a resume takes it as it was")
        state.restore(self.bare, self.ema, self.optimizer)
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and state.scaler:
            scaler.load_state_dict(dict(state.scaler))
        self.progress = replace(state.progress)

    def recover(self, error: NonFiniteError) -> None:
        """Stop, or go back to the last saved state and leave the batch out, as the run was told.

        Raises:
            NonFiniteError: the run is told to stop, or nothing was saved yet.
        """
        path = self.settings.folder / STATE_FILE
        if self.settings.on_nonfinite == "stop" or not path.is_file():
            raise error
        self.journal.say(f"{error}. Going back to the last saved weights and leaving the batch out.")
        self.optimizer.zero_grad(set_to_none=True)
        load_state(path).restore(self.bare, self.ema, self.optimizer)
        self.progress.batch += 1
        self.progress.step += 1

    def _scaler_state(self) -> Mapping[str, Any] | None:
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return scaler.state_dict() if scaler is not None else None


def is_frozen(name: str, stages: int) -> bool:
    """Whether the node path ``name`` belongs to the first ``stages`` stages of the backbone."""
    if stages < 1 or not name.startswith("backbone."):
        return False
    part = name.split(".")[1]
    return part == "stem" or (part.startswith("stage") and int(part.removeprefix("stage")) <= stages)


def prepare(
    spec: ModelSpec,
    recipe: Recipe,
    settings: Settings,
    train_data: Dataset,
    val_data: Dataset | None,
    *,
    start: Checkpoint | None = None,
    resume: bool = False,
) -> Training:
    """Put a training together.

    Args:
        spec: the network, with the number of classes of the data.
        recipe: what decides how it is trained; its size, where given, replaces that of the spec.
        settings: how it is run.
        train_data: images to learn from.
        val_data: images to choose the best epoch by; None trains without evaluation.
        start: weights to start from, layer by layer where they fit.
        resume: go on from the state in ``settings.folder``.

    Raises:
        ScaledYoloError: what does not fit, in one sentence.
    """
    check_classes(spec, train_data, val_data)
    fabric = Fabric(
        accelerator=settings.device,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="ddp" if settings.devices * settings.nodes > 1 else "auto",
        precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[settings.precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    graph = lower(spec)
    network = Network(graph, logits=True)
    generator = torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)
    initialise(network, generator)
    report = transfer(network, start) if start is not None else None
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not is_frozen(name, settings.freeze))
    if settings.devices * settings.nodes > 1 and fabric.device.type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    loader = make_loader(train_data, recipe, graph, settings, Shard(fabric.global_rank, fabric.world_size))
    training = Training(fabric, spec, recipe, settings, (train_data, val_data), loader, network)
    if resume:
        training.resume(load_state(settings.folder / STATE_FILE))
    elif fabric.is_global_zero:
        write_manifest(settings.folder / "run.json", manifest(training, report))
    if report is not None and not resume:
        training.journal.say(str(report))
    return training


def make_loader(data: Dataset, recipe: Recipe, graph: Graph, settings: Settings, shard: Shard) -> TrainLoader:
    """Augmented batches of the recipe's size at the network's, each process its share.

    Raises:
        UsageError: the batch cannot be shared out evenly.
    """
    if recipe.batch % shard.world_size:
        raise UsageError(f"a batch of {recipe.batch} images cannot be shared by {shard.world_size} processes evenly")
    zoom = recipe.multi_scale
    config = LoaderConfig(
        batch_size=recipe.batch // shard.world_size,
        size=graph.height,
        stride=graph.max_stride,
        seed=settings.seed,
        workers=settings.workers,
        multi_scale=(1 - zoom, 1 + zoom) if zoom else None,
    )
    source = ImageSource(data, graph.height, cache=settings.cache)
    return TrainLoader(source, config, recipe.augmentation, shard=shard)


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


def manifest(training: Training, report: Transfer | None) -> dict[str, Any]:
    """What was run, on what and with what."""
    packages = ("scaledyolo", "torch", "numpy", "opencv-python-headless", "lightning-fabric")
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **training.facts(),
        "settings": {key: str(value) for key, value in asdict(training.settings).items()},
        "transfer": None if report is None else asdict(report),
        "images": {
            "train": len(training.train_data),
            "val": 0 if training.val_data is None else len(training.val_data),
        },
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "device": str(training.fabric.device),
            "processes": training.fabric.world_size,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
        "packages": {name: version(name) for name in packages},
    }
