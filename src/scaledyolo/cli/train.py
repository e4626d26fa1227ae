"""`scaledyolo train`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from scaledyolo.errors import DataError, MissingPackageError, UsageError, counted

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from scaledyolo.arch.spec import ModelSpec
    from scaledyolo.checkpoint import Checkpoint
    from scaledyolo.data.dataset import Dataset
    from scaledyolo.train.manifest import Run
    from scaledyolo.train.progress import Progress
    from scaledyolo.train.recipe import Recipe
    from scaledyolo.train.settings import DataSource, Settings


@dataclass(frozen=True)
class Train:
    """Train a network of the family on a data set in COCO, YOLO or VOC format; or take up a run again."""

    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = ()
    """Folders or files of data sets, learnt from as one, their classes merged by name; the format is recognised by
    looking. With --resume: where they lie now."""
    model: str = "yolov4-tiny"
    """Zoo name or spec file; the number of classes follows the data."""
    recipe: str = "small"
    """Name of a recipe (see `scaledyolo recipes`) or a YAML file."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Values of the recipe to change, such as schedule.epochs=40."""
    weights: str | None = None
    """Checkpoint to start from, layer by layer where it fits; default: the model that comes with the package; scratch:
    random weights. Unless given, the recipe decides: `pretrained` ones begin with default where it is the same network,
    others from scratch."""
    epochs: int | None = None
    """Short for --set schedule.epochs=N; stages before get their share."""
    minutes: float | None = None
    """In place of --epochs: as many as take about so long on this machine, measured before the training begins; the
    number is printed, and --epochs with it repeats the training."""
    batch: int | None = None
    """Short for --set batch=N."""
    memory: str | None = None
    """Make the batch as small as needed for this memory of each process, such as 8G, and accumulate more of them."""
    size: int | None = None
    """Side of the network input in pixels; by default the model's own."""
    split: str = "train"
    """What to learn from: a split, all, a .txt file that lists images, or a share of any of these: train[:80%]."""
    val_split: str = "val"
    """What to choose the best epoch by: likewise, or the share of --split that is kept apart for it, such as 0.2."""
    transform: str | None = None
    """Your own augmentation, applied last, as module:object: my_transforms:pipeline of my_transforms.py in the current
    folder; Albumentations, torchvision v2, or a function of sample and generator. Its code is run."""
    out: Path = Path("runs")
    """Folder of all runs; each makes a new folder below."""
    resume: Path | None = None
    """Folder of a run to go on with, as it was begun; no other option is needed."""
    seed: int = 0
    """Of everything random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    devices: int = 1
    """Processes on this machine, a GPU each."""
    nodes: int = 1
    """Machines; start the same command on each under torchrun."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Of forward and backward; weights and loss are always float32. Auto: bf16 where the hardware has it, else 32."""
    workers: int = 1
    """Threads that prepare images."""
    cache: Literal["none", "ram", "disk"] = "ram"
    """Where decoded images are remembered."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last is always evaluated."""
    save_every: float = 300.0
    """Seconds between saves within an epoch; every epoch is saved anyway."""
    patience: int = 0
    """Stop after so many epochs of the last stage without a better one; 0: never."""
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    """What to do when the loss is no number."""
    freeze: int = 0
    """Stages of the backbone that are not trained."""
    freeze_norm: bool = False
    """Keep the running statistics of normalisations as they are."""
    compile: bool = False
    """Compile the network with torch.compile."""
    log: tuple[str, ...] = ()
    """Services to log to besides TensorBoard and CSV: wandb, mlflow."""
    bad: Literal["fail", "skip", "fix"] = "fix"
    """What to do with broken labels and images."""
    timeout: float = 1800.0
    """Seconds that a process waits for the others before it gives up."""

    def run(self) -> int:
        try:
            from scaledyolo.train.advice import check_boxes
            from scaledyolo.train.loop import fit
            from scaledyolo.train.prepare import prepare
            from scaledyolo.train.processes import Processes, launch
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"training needs {error.name}; install it with: pip install 'scaledyolo[train]'"
            ) from None
        from scaledyolo.outputs.files import create_run_folder

        run, start = (self._saved_run(self.resume), None) if self.resume is not None else self._new_run()
        assert run.data is not None
        train_data, val_data = run.data.open()
        check_boxes(train_data)
        run = replace(run, spec=run.spec.with_classes(train_data.num_classes)) if self.resume is None else run
        fabric = launch(run.settings)
        if start is not None and self.weights is None and fabric.is_global_zero:
            print(
                "begins with the model that comes with the package (--weights scratch: with random weights)",
                file=sys.stderr,
            )
        if self.minutes is not None:
            run = self._paced(fabric, run, train_data, val_data)
        folder = self.resume
        if folder is None:
            # Every process runs through here, but they share one folder.
            mine = create_run_folder(self.out, "train") if fabric.is_global_zero else None
            folder = Processes.of(fabric, run.settings.timeout).share_path(mine)
        training = prepare(fabric, folder, run, train_data, val_data, start=start, resume=self.resume is not None)
        try:
            fit(training)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"`scaledyolo train --resume {quote(str(folder))}` goes on") from None
        if fabric.is_global_zero:
            print(closing_words(run, folder, training.progress))
        return 0

    def _paced(self, fabric: Fabric, run: Run, train_data: Dataset, val_data: Dataset) -> Run:
        """The run with as many epochs as fit into the minutes that were given."""
        from scaledyolo.train.pace import fitting_epochs, measure_pace

        assert self.minutes is not None
        if self.epochs is not None or run.settings.world_size > 1:
            raise UsageError("--minutes is for a new training in one process, without --epochs; use --epochs instead")
        pace = measure_pace(fabric, run, train_data, val_data)
        epochs = fitting_epochs(pace, run.recipes[-1], self.minutes, run.settings.evaluate_every)
        print(
            f"{counted(epochs, 'epoch takes', 'epochs take')} about {self.minutes:g} minutes here: "
            f"{pace.batch:.3g} s a step, {pace.evaluation:.3g} s an evaluation; repeat with --epochs {epochs}"
        )
        planned, _ = replace(self, minutes=None, epochs=epochs)._new_run()
        return replace(planned, spec=run.spec)

    def _saved_run(self, folder: Path) -> Run:
        from scaledyolo.train.manifest import read_run

        ignored = [
            f"--{option.name.replace('_', '-')}"
            for option in fields(self)
            if option.name not in ("data", "resume") and getattr(self, option.name) != option.default
        ]
        if ignored:
            raise UsageError(
                f"--resume goes on with a run as it was begun, so {' and '.join(ignored)} cannot change it; leave it "
                f"out, or start a new run with --weights {folder / 'last.safetensors'}"
            )
        run = read_run(folder)
        if run.data is None:
            raise UsageError(f"{folder}: began in Python, with data unknown to the command line; resume it in Python")
        if self.data:
            return replace(run, data=replace(run.data, paths=tuple(map(str, self.data))))
        gone = [path for path in run.data.paths if not Path(path).exists()]
        if gone:
            raise DataError(f"{folder}: its data {gone[0]} is not there any more; say with --data where it lies now")
        return run

    def _new_run(self) -> tuple[Run, Checkpoint | None]:
        """The run that the options describe; its class count is still that of the spec."""
        from scaledyolo.cli.options import model_source
        from scaledyolo.data.plugins import load_transform
        from scaledyolo.model import load_model
        from scaledyolo.train.manifest import Run
        from scaledyolo.train.transfer import SCRATCH, default_start

        if not self.data:
            raise UsageError("nothing to learn from; give --data, or --resume with the folder of a run")
        if self.transform is not None:
            load_transform(self.transform)  # whether it can be is said before a folder is made
        recipe, changes = self._recipe()
        named = None if self.weights in (None, SCRATCH) else load_model(model_source((self.weights,)))
        spec = self._spec(recipe, named)
        start = default_start(recipe, spec) if self.weights is None else named
        settings = self._settings(recipe)
        # Weights that are named stand for the stages before.
        stages = recipe.stages(*changes) if named is None else (recipe,)
        if self.memory is not None:
            stages = self._fit_memory(self.memory, stages, spec, settings)
        return Run(spec=spec, recipes=stages, settings=settings, data=self._source()), start

    def _source(self) -> DataSource:
        """The data with whole paths, so that a resume finds it from anywhere."""
        from scaledyolo.data.selection import parse_pair
        from scaledyolo.train.settings import DataSource

        part, val_part = parse_pair(self.split, self.val_split)
        paths = tuple(str(path.expanduser().absolute()) for path in self.data)
        return DataSource(paths, str(part.absolute()), str(val_part.absolute()), self.bad)

    def _settings(self, recipe: Recipe) -> Settings:
        from scaledyolo.train.machine import device_type, resolve_precision
        from scaledyolo.train.settings import Settings

        # bfloat16 has 8 bits itself: training for 8 bits, it would blur what it is about.
        precision = "32" if recipe.quantise_aware and self.precision == "auto" else self.precision
        return Settings(
            seed=self.seed,
            device=self.device,
            devices=self.devices,
            nodes=self.nodes,
            # What "auto" means here and now, so that a resume on another machine goes on with the same.
            precision=resolve_precision(precision, device_type(self.device)),
            workers=self.workers,
            cache=self.cache,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
            save_every=self.save_every,
            on_nonfinite=self.on_nonfinite,
            freeze=self.freeze,
            freeze_norm=self.freeze_norm,
            compile=self.compile,
            services=self.log,
            transform=self.transform or "",
            timeout=self.timeout,
        )

    def _recipe(self) -> tuple[Recipe, list[str]]:
        """The recipe, and what was changed in it."""
        from scaledyolo.train.recipe import recipe_named

        recipe = recipe_named(self.recipe)
        changes: list[str] = []
        if self.epochs is not None:
            begin = self.epochs * recipe.schedule.first_epoch // recipe.schedule.epochs
            changes += [f"schedule.first_epoch={begin}", f"schedule.epochs={self.epochs}"]
            # The recipe is checked after each: where it grows, its end moves first.
            changes = changes[::-1] if self.epochs > recipe.schedule.epochs else changes
        changes += [f"batch={self.batch}"] if self.batch is not None else []
        changes += self.set
        return recipe.replace(*changes), changes

    def _spec(self, recipe: Recipe, start: Checkpoint | None) -> ModelSpec:
        from scaledyolo.model import load_spec
        from scaledyolo.train.prepare import spec_for_training

        spec = start.spec if start is not None and self.model == type(self).model else load_spec(self.model)
        if spec is None:
            raise UsageError(f"{self.weights}: its network is no spec of the family; name one with --model")
        return spec_for_training(spec, recipe, self.size or 0)

    def _fit_memory(self, memory: str, stages: tuple[Recipe, ...], spec: ModelSpec, settings: Settings) -> Any:
        from scaledyolo.arch.lower import lower
        from scaledyolo.arch.memory import parse_bytes
        from scaledyolo.train.microbatch import fit_memory

        bits: Literal["16", "32"] = "32" if settings.precision == "32" else "16"
        graph = lower(spec)
        return tuple(
            fit_memory(recipe, graph, parse_bytes(memory), bits, processes=settings.world_size) for recipe in stages
        )


def closing_words(run: Run, folder: Path, progress: Progress) -> str:
    """What came out of a training, and what to do with it next."""
    from scaledyolo.train.training import BEST_FILE, LAST_FILE

    assert run.data is not None
    data = " ".join(map(quote, run.data.paths))
    split = "" if run.data.val_split == Train.val_split else f" --split {quote(run.data.val_split)}"
    best = quote(str(folder / BEST_FILE))
    lines = [f"{folder}: {LAST_FILE} and {BEST_FILE} are ready, best AP in epoch {progress.best_epoch}"]
    if progress.best_fitness <= 0:
        lines.append(
            "warning: no object of the images to choose by was found in any epoch; train longer (--epochs), and ask "
            f"`scaledyolo doctor --data {data}`"
        )
    lines += [
        f"measure it:  scaledyolo eval {best} --data {data}{split}",
        f"use it:      scaledyolo detect PHOTOS --model {best}",
    ]
    return "\n".join(lines)
