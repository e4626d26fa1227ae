"""A training put together: network, data, optimiser, moving average, journal, and where it stands.

:func:`scaledyolo.train.prepare.prepare` builds it from plain values; :func:`scaledyolo.train.loop.fit` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor

from scaledyolo.arch.quantisation import TRAINED_FOR
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.data.canvases import Canvases
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.loader import TrainLoader
from scaledyolo.data.order import image_weights
from scaledyolo.errors import DataError, UsageError
from scaledyolo.evaluate.arrays import Predictions
from scaledyolo.evaluate.coco import CocoMetrics, coco_metrics
from scaledyolo.evaluate.protocols import TRAINING
from scaledyolo.evaluate.run import ground_truth, predict
from scaledyolo.net.network import Network
from scaledyolo.net.rounding import trained_weights
from scaledyolo.subnet import TRAINED_SUBNETS
from scaledyolo.train.guard import Guard, NonFiniteError
from scaledyolo.train.journal import Journal
from scaledyolo.train.manifest import Run, completed
from scaledyolo.train.optim import make_ema, make_optimizer, warmup_steps
from scaledyolo.train.processes import Processes
from scaledyolo.train.progress import Progress
from scaledyolo.train.recipe import Recipe
from scaledyolo.train.sandwich import InnerNetwork, Sandwich
from scaledyolo.train.services import open_services
from scaledyolo.train.state import SavedState, load_state, save_state

if TYPE_CHECKING:
    from scaledyolo.data.loader import Batch

STATE_FILE = "state.safetensors"
LAST_FILE = "last.safetensors"
BEST_FILE = "best.safetensors"

# What a resumed run must have in common with the saved one, besides the images.
_FACTS = {"spec": "the model", "recipes": "the recipe", "seed": "the seed", "transform": "the code of the transform"}

# Going back more often than this in one epoch means that it is not a bad batch.
MOST_ROLLBACKS = 10


class Training:
    """Everything that the loop touches; made by :func:`scaledyolo.train.prepare.prepare`."""

    def __init__(
        self,
        fabric: Fabric,
        folder: Path,
        run: Run,
        data: tuple[Dataset, Dataset | None],
        loaders: Sequence[TrainLoader],
        network: Network,
    ) -> None:
        self.fabric, self.folder, self.run, self.loaders = fabric, folder, run, loaders
        self.recipes, self.settings = run.recipes, run.settings
        self.train_data, self.val_data = data
        self.graph = network.graph
        self.processes = Processes.of(fabric, run.settings.timeout)
        self.ema = make_ema(network, run.recipes[0].ema)
        self.guard = Guard(network, folder, fabric.global_rank, fabric.autocast)
        compiled = cast("torch.nn.Module", torch.compile(network)) if run.settings.compile else network
        self.network, self.optimizer = fabric.setup(compiled, make_optimizer(network, run.recipes[0]))
        self.bare = network
        self.progress = Progress(epoch=run.recipes[0].schedule.first_epoch)
        self.progress.step = self.progress.epoch * len(loaders[0])
        services = open_services(run.settings.services, folder, run.parameters()) if fabric.is_global_zero else []
        self.journal = Journal(
            folder, run.recipes[-1].schedule.epochs, services, run.settings.quiet, first_rank=fabric.is_global_zero
        )
        self.sandwiches = [Sandwich(self.graph, recipe.subnets, run.settings.seed) for recipe in run.recipes]
        self._canvases: Canvases | None = None
        self._saved_at = time.monotonic()
        self._rollbacks = (-1, 0)  # the epoch, and how often we went back in it

    # The loop's view ----------------------------------------------------------------------------------------------

    @property
    def stage(self) -> int:
        """Which of the recipes is followed now."""
        ends = [recipe.schedule.epochs for recipe in self.recipes]
        return next((index for index, end in enumerate(ends) if self.progress.epoch < end), len(ends) - 1)

    @property
    def recipe(self) -> Recipe:
        """The recipe that is followed now."""
        return self.recipes[self.stage]

    @property
    def loader(self) -> TrainLoader:
        """The batches of the current stage."""
        return self.loaders[self.stage]

    def subnets_of_step(self) -> tuple[InnerNetwork, ...]:
        """The networks inside this one that the current batch trains too; none before the warm-up is over."""
        if self.progress.step < warmup_steps(self.recipe.schedule, len(self.loader)):
            return ()
        return self.sandwiches[self.stage].of_step(self.progress.step)

    @property
    def _scaler(self) -> Any:
        return getattr(self.fabric.strategy.precision, "scaler", None)

    @property
    def scales_gradients(self) -> bool:
        """Whether a gradient scaler deals with gradients that overflow (float16)."""
        return self._scaler is not None

    def gradient_scale(self) -> float:
        """By how much gradients are larger than they are meant to be."""
        return float(self._scaler.get_scale()) if self.scales_gradients else 1.0

    @property
    def loss_device(self) -> torch.device:
        """Where float64 sums are exchanged: Apple's GPUs know no float64."""
        return self.fabric.device if self.fabric.device.type == "cuda" else torch.device("cpu")

    def batches(self) -> Generator[Batch, None, None]:
        """The remaining batches of the current epoch; its last epochs go without mixing images, as the recipe says."""
        schedule = self.recipe.schedule
        plain = self.progress.epoch >= schedule.epochs - schedule.plain_epochs
        return self.loader.epoch(
            self.progress.epoch,
            start_batch=self.progress.batch,
            weights=self.image_weights() if self.recipe.image_weights else None,
            augmentation=self.recipe.augmentation.without_mixing() if plain else None,
        )

    def image_weights(self) -> npt.NDArray[np.float64]:
        """How often each image is drawn: the sum over its boxes of what their classes still miss, (1 - AP)², by their
        frequency (specification 3.5). Images without boxes are drawn as often as the rarest."""
        counts = np.maximum(self.train_data.class_counts(), 1)
        reached = np.nan_to_num(np.array(self.progress.class_ap or (0.0,) * len(counts)))
        notes = self.train_data.annotations
        weights = image_weights((1 - reached) ** 2 / counts, notes.offsets, notes.class_ids.astype(np.int64))
        positive = weights[weights > 0]
        return np.where(weights > 0, weights, positive.min()) if len(positive) else np.ones(len(weights))

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, height, width) float32 in [0, 1], channels last, and targets (n, 6), on the device."""
        images = torch.from_numpy(batch.images).to(self.fabric.device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last).float().div_(255)
        return images, torch.from_numpy(batch.targets).to(self.fabric.device, non_blocking=True)

    def freeze(self) -> None:
        """Keep the running statistics as they are: of frozen stages, or of all, as told."""
        for name, module in self.bare.named_modules():
            is_norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            if is_frozen(name, self.settings.freeze) or (self.settings.freeze_norm and is_norm):
                module.eval()

    def evaluation_is_due(self) -> bool:
        """Whether the epoch that just ended is to be evaluated."""
        epoch = self.progress.epoch
        is_last = any(epoch == recipe.schedule.epochs for recipe in self.recipes)
        return self.val_data is not None and (is_last or epoch % self.settings.evaluate_every == 0)

    def is_stale(self) -> bool:
        """Whether too many epochs of the last stage passed without a better one, and the latest was looked at.

        Stages before run to their end: the next begins on the learning rate that they lead up to.
        """
        patience, begun = self.settings.patience, self.recipes[-1].schedule.first_epoch
        if patience < 1 or not self.evaluation_is_due():
            return False
        return self.progress.epoch - max(self.progress.best_epoch, begun) >= patience

    def evaluate(self) -> CocoMetrics:
        """COCO metrics of the moving average on the validation images, each seen by exactly one process."""
        assert self.val_data is not None
        if self._canvases is None:  # the images to choose by are decoded once, as those to learn from
            self._canvases = Canvases(
                self.val_data,
                self.graph.height,
                self.graph.width,
                resize=self.graph.resize,
                cache=self.settings.cache,
            )
        self.processes.copy_first(self.ema.module)
        found = predict(
            self.val_data,
            self.run_average,
            self.graph.detects,
            self.graph.height,
            self.graph.width,
            TRAINING,
            batch=min(self.recipe.batch, 16),
            indices=range(self.processes.rank, len(self.val_data), self.processes.count),
            canvases=self._canvases,
        )
        return coco_metrics(ground_truth(self.val_data), gathered(self.processes, found))

    @torch.inference_mode()
    def run_average(self, batch: np.ndarray) -> list[np.ndarray]:
        """Raw maps of the moving average, float32, for images (batch, 3, height, width) in [0, 1]."""
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
            save_checkpoint(self.folder / BEST_FILE, model)
        save_checkpoint(self.folder / LAST_FILE, model)
        self.save_state()

    def save_state(self) -> None:
        """Write all that is needed to go on from here."""
        save_state(
            self.folder / STATE_FILE,
            network=self.bare,
            ema=self.ema,
            optimizer=self.optimizer,
            progress=self.progress,
            facts=self.facts(),
            scaler=self._scaler.state_dict() if self.scales_gradients else None,
        )

    def save_if_due(self) -> None:
        """Save within an epoch when the last save is long ago; call only when no gradient is pending."""
        if time.monotonic() - self._saved_at >= self.settings.save_every:
            self.save()

    def checkpoint(self) -> Checkpoint:
        """The moving average as a model that detects; if it was trained for 8 bits, with weights on their grid."""
        weights = {
            name: value.detach().to("cpu", torch.float32, copy=True).numpy()
            for name, value in (*self.ema.module.state_dict().items(), *trained_weights(self.ema.module))
        }
        trained = sorted({network.name for sandwich in self.sandwiches for network in sandwich.networks})
        return Checkpoint(
            graph=self.graph,
            weights=weights,
            class_names=self.train_data.names,
            spec=self.run.spec,
            category_ids=self.train_data.original_ids,
            provenance={
                "source": "trained with scaledyolo",
                "recipe": ", then ".join(recipe.name for recipe in self.recipes),
                "epochs": str(self.progress.epoch),
                "seed": str(self.settings.seed),
                "data": self.train_data.source,
                "data_fingerprint": self.train_data.fingerprint,
                **({TRAINED_SUBNETS: ", ".join(trained)} if trained else {}),
                **({TRAINED_FOR: "int8"} if self.recipes[-1].quantise_aware else {}),
            },
        )

    def fingerprints(self) -> dict[str, str | None]:
        """What identifies the images and boxes of both data sets."""
        return {
            "train": self.train_data.fingerprint,
            "val": None if self.val_data is None else self.val_data.fingerprint,
        }

    def facts(self) -> dict[str, Any]:
        """What a resumed run compares."""
        return self.run.facts(self.fingerprints())

    def resume(self, state: SavedState) -> None:
        """Go on from a saved state.

        Raises:
            DataError: images or their boxes changed since.
            UsageError: model, recipe, seed or the user's transform differ from those of the saved run.
        """
        mine, saved = self.facts(), completed(state.facts)
        for split, known in state.facts.get("data_fingerprints", {}).items():
            if known != mine["data_fingerprints"].get(split):
                raise DataError(
                    f"{state.path}: the {split} data changed since this run began; restore it, or start a new run "
                    f"with --weights {self.folder / LAST_FILE}"
                )
        for key, what in _FACTS.items():
            if saved.get(key) != mine[key]:
                raise UsageError(f"{state.path}: {what} differs from that of the run; a resume takes it as it was")
        self._restore(state)
        self.progress = state.progress

    def _restore(self, state: SavedState) -> None:
        state.restore(self.bare, self.ema, self.optimizer)
        if self.scales_gradients and state.scaler:
            self._scaler.load_state_dict(dict(state.scaler))

    def recover(self, error: NonFiniteError) -> None:
        """Stop, or go back to the last saved weights and leave the batch out, as the run was told.

        Raises:
            NonFiniteError: the run is told to stop, or going back did not help.
        """
        epoch, times = self._rollbacks
        self._rollbacks = (self.progress.epoch, times + 1 if epoch == self.progress.epoch else 1)
        if self.settings.on_nonfinite == "stop":
            raise error
        if self._rollbacks[1] > MOST_ROLLBACKS:
            raise NonFiniteError(f"going back {MOST_ROLLBACKS} times in one epoch did not help: {error}")
        self.journal.say(f"{error}. Going back to the last saved weights and leaving the batch out.")
        self.optimizer.zero_grad(set_to_none=True)
        self._restore(load_state(self.folder / STATE_FILE))
        self.progress.batch += 1
        self.progress.step += 1


def gathered(processes: Processes, found: Predictions) -> Predictions:
    """The predictions of all processes together."""
    columns = (found.image_index, found.boxes_xyxy, found.scores, found.class_ids)
    parts = zip(*processes.gather(columns), strict=True)
    index, boxes, scores, classes = (np.concatenate(column) for column in parts)
    return Predictions(found.num_images, found.num_classes, index, boxes, scores, classes)


def is_frozen(name: str, stages: int) -> bool:
    """Whether the node path ``name`` belongs to the first ``stages`` stages of the backbone."""
    if stages < 1 or not name.startswith("backbone."):
        return False
    part = name.split(".")[1]
    return part == "stem" or (part.startswith("stage") and int(part.removeprefix("stage")) <= stages)
