"""`scaledyolo train`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaledyolo.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from scaledyolo.arch.spec import ModelSpec
    from scaledyolo.checkpoint import Checkpoint
    from scaledyolo.data.dataset import Dataset
    from scaledyolo.train.recipe import Recipe


@dataclass(frozen=True)
class Train:
    """Train a network of the family on a data set in COCO, YOLO or VOC format."""

    data: Path
    """Folder or file of the data set; its format is recognised by looking."""
    model: str = "yolov4-tiny"
    """Zoo name or spec file; the number of classes follows the data."""
    recipe: str = "custom"
    """Name of a recipe (tiny, csp, large, large-finetune, custom) or a YAML file."""
    set: tuple[str, ...] = ()
    """Values of the recipe to change, such as schedule.epochs=40."""
    weights: Path | None = None
    """Checkpoint to start from, layer by layer where it fits; by default from scratch."""
    epochs: int | None = None
    """Short for --set schedule.epochs=N."""
    batch: int | None = None
    """Short for --set batch=N."""
    size: int | None = None
    """Side of the network input in pixels; by default the model's own."""
    split: str = "train"
    """Split to learn from."""
    val_split: str = "val"
    """Split by which the best epoch is chosen."""
    out: Path = Path("runs")
    """Folder of all runs; each makes a new folder below."""
    resume: Path | None = None
    """Folder of a run to go on with, as it was begun."""
    seed: int = 0
    """Of everything random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    devices: int = 1
    """Processes on this machine, a GPU each."""
    nodes: int = 1
    """Machines; start the same command on each under torchrun."""
    precision: Literal["32", "bf16", "16"] = "bf16"
    """Of forward and backward; weights and loss are always float32."""
    workers: int = 1
    """Threads that prepare images."""
    cache: Literal["none", "ram", "disk"] = "ram"
    """Where decoded images are remembered."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last is always evaluated."""
    patience: int = 0
    """Stop after so many epochs without a better one; 0: never."""
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    """What to do when the loss is no number."""
    freeze: int = 0
    """Stages of the backbone that are not trained."""
    compile: bool = False
    """Compile the network with torch.compile."""
    log: tuple[str, ...] = ()
    """Services to log to besides TensorBoard and CSV: wandb, mlflow."""
    bad: Literal["fail", "skip", "fix"] = "fix"
    """What to do with broken labels and images."""

    def run(self) -> int:
        try:
            from scaledyolo.train.loop import fit
            from scaledyolo.train.training import Settings, prepare
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"training needs {error.name}; install it with: pip install 'scaledyolo[train]'"
            ) from None
        from scaledyolo.outputs.files import create_run_folder

        recipe = self._recipe()
        train_data, val_data = self._data()
        spec, start = self._model(recipe, train_data)
        folder = self.resume or create_run_folder(self.out, "train")
        settings = Settings(
            folder=folder,
            seed=self.seed,
            device=self.device,
            devices=self.devices,
            nodes=self.nodes,
            precision=self.precision,
            workers=self.workers,
            cache=self.cache,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
            on_nonfinite=self.on_nonfinite,
            freeze=self.freeze,
            compile=self.compile,
            services=self.log,
        )
        training = prepare(spec, recipe, settings, train_data, val_data, start=start, resume=self.resume is not None)
        fit(training)
        if training.fabric.is_global_zero:
            best = f", best AP in epoch {training.progress.best_epoch}" if val_data is not None else ""
            print(f"{folder}: last.safetensors and best.safetensors are ready{best}")
        return 0

    def _recipe(self) -> Recipe:
        from scaledyolo.train.recipe import recipe_named

        changes = list(self.set)
        changes += [f"schedule.epochs={self.epochs}"] if self.epochs is not None else []
        changes += [f"batch={self.batch}"] if self.batch is not None else []
        return recipe_named(self.recipe).replace(*changes)

    def _data(self) -> tuple[Dataset, Dataset | None]:
        from scaledyolo.data.formats import open_dataset

        train = open_dataset(self.data, self.split, bad=self.bad)
        val = open_dataset(self.data, self.val_split, bad=self.bad, names=train.names)
        return train, val

    def _model(self, recipe: Recipe, data: Dataset) -> tuple[ModelSpec, Checkpoint | None]:
        from scaledyolo.checkpoint import load_checkpoint
        from scaledyolo.model import load_spec

        start = load_checkpoint(self.weights) if self.weights else None
        spec = start.spec if start is not None and self.model == type(self).model else load_spec(self.model)
        if spec is None:
            raise UsageError(f"{self.weights}: its network is no spec of the family; name one with --model")
        spec = spec.with_classes(data.num_classes).with_size(self.size or recipe.size or spec.size)
        if recipe.assignment.rule == "scaled":
            # The neighbour cells of this assignment lie outside what the exponential decoding can say.
            spec = replace(spec, decoding="sigmoid-squared", scale_xy=())
        return replace(spec, resize="letterbox"), start
