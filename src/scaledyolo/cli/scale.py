"""`scaledyolo scale`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scaledyolo.cli.exit_codes import EXIT_INCOMPLETE
from scaledyolo.errors import UsageError

if TYPE_CHECKING:
    from scaledyolo.arch.spec import ModelSpec
    from scaledyolo.data.dataset import Dataset
    from scaledyolo.design.candidates import Range
    from scaledyolo.design.refine import Trainer
    from scaledyolo.design.search import Answer


@dataclass(frozen=True)
class Scale:
    """Find the network for a budget on this machine: thousands are costed, the promising ones measured end to end.

    Give one budget. Accuracy is not known before training; networks are ordered by their capacity: how much of the
    boxes they can see, times how much they compute for each pixel.
    """

    fps: float | None = None
    """Images a second, from the picture to the boxes."""
    latency: str | None = None
    """Time of one image, such as 20ms."""
    gflops: float | None = None
    """Giga floating-point operations of the convolutions for one image."""
    params: str | None = None
    """Learned values, such as 5M."""
    memory: str | None = None
    """Memory of weights and live maps, such as 64M; what the runtime itself takes comes on top."""
    base: Annotated[str, tyro.conf.arg(metavar="FAMILY | MODEL")] = "auto"
    """What is scaled: tiny, csp, p5, p6, p7, auto (tiny, csp, and more stages where the size allows), or a network: zoo
    name or spec file."""
    size_range: Annotated[tuple[int, int], tyro.conf.arg(metavar="LEAST MOST")] = (256, 640)
    """Sides of the network input in pixels."""
    activation: Literal["auto", "leaky", "mish", "swish"] = "auto"
    """Activation of the networks; auto: leaky or mish, whichever is worth its time."""
    classes: int | None = None
    """Number of classes; by default 80, or those of --data."""
    data: Path | None = None
    """Data set: its classes, and its boxes in place of COCO's; --out then gets anchors fitted to it."""
    split: str = "train"
    """Split of --data, all, a .txt file that lists images, or a share of any of these: train[:80%]."""
    refine: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """Train the networks near the top on --data for so long, the better ones longer, and choose by their AP; the same
    command goes on where it was stopped."""
    val_split: str = "val"
    """What --refine compares networks by: likewise, or the share of --split that is kept apart for it, such as 0.2."""
    recipe: str = "small"
    """Recipe of --refine: a name (see `scaledyolo recipes`) or a YAML file; its epochs are the most it trains for."""
    seed: int = 0
    """Of everything random in --refine."""
    runs: Path = Path("runs")
    """Folder of the trainings of --refine."""
    engine: Literal["auto", "openvino", "onnxruntime", "torch"] = "auto"
    """What runs the network."""
    device: str = "auto"
    """Where it runs: cpu, cuda, or Intel's gpu and npu."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What it computes in; auto: what `detect` takes by itself."""
    threads: int | None = None
    """Threads of the engine on a CPU; by default all cores."""
    refresh: bool = False
    """Forget what was measured on this machine before."""
    out: Path | None = None
    """Spec file (.yaml) to write, for --model of training."""
    plot: Path | None = None
    """Picture to draw (.png, .svg, .pdf)."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        from scaledyolo.design.budget import parse_budget

        budget = parse_budget(
            fps=self.fps, latency=self.latency, gflops=self.gflops, params=self.params, memory=self.memory
        )
        self._check_outputs()
        self._check_refine()
        from scaledyolo.design.capacity import COCO_BOXES, boxes_of
        from scaledyolo.design.device import EngineDevice
        from scaledyolo.design.report import document, draw, text
        from scaledyolo.design.search import search
        from scaledyolo.design.store import open_store

        dataset, val = self._datasets()
        trainer = None if dataset is None or val is None else self._trainer(dataset, val)
        boxes = COCO_BOXES if dataset is None else boxes_of(dataset)
        wanted = self._range(dataset)
        machine = EngineDevice(engine=self.engine, device=self.device, precision=self.precision, threads=self.threads)
        store = open_store(machine.facts, refresh=self.refresh)
        answer = search(wanted, budget, machine, store, boxes=boxes, tell=_tell)
        if dataset is not None and trainer is not None:
            answer = self._refined(answer, dataset, trainer)
        print(json.dumps(document(answer), indent=2) if self.json else text(answer, boxes))
        if self.out is not None:
            self._write(self.out, answer.chosen.candidate.spec(), dataset)
        if self.plot is not None:
            draw(answer, self.plot)
            _tell(f"{self.plot}: drawn")
        interrupted = answer.refinement is not None and answer.refinement.state == "interrupted"
        return EXIT_INCOMPLETE if interrupted else 0

    def _check_refine(self) -> None:
        """Refuse a refinement that could not be made, before anything is measured."""
        if self.refine is None:
            return
        from scaledyolo.design.refine import check_packages

        if self.data is None:
            raise UsageError("--refine trains on your images; name them with --data")
        if not 0 < self.refine < float("inf"):
            raise UsageError(f"--refine takes minutes above zero, got {self.refine:g}")
        check_packages()

    def _trainer(self, train: Dataset, val: Dataset) -> Trainer:
        from scaledyolo.design.short_training import ShortTrainer
        from scaledyolo.train.recipe import recipe_named

        return ShortTrainer(train, val, recipe_named(self.recipe), seed=self.seed)

    def _refined(self, answer: Answer, dataset: Dataset, trainer: Trainer) -> Answer:
        """The answer with what short trainings say about its networks."""
        from scaledyolo.data.anchors import fit_anchors
        from scaledyolo.design.refine import Entrant, finalists, refine

        assert self.refine is not None
        chosen = finalists(answer)
        if len(chosen) < 2:
            _tell("only one network that was measured meets the budget, so nothing was trained")
            return answer
        entrants = [Entrant(one, fit_anchors(one.candidate.spec(), dataset).spec) for one in chosen]
        found = refine(entrants, trainer, self.refine, self.runs, _tell)
        return replace(answer, chosen=found.choice, refinement=found)

    def _check_outputs(self) -> None:
        """Refuse what could not be written before anything is measured."""
        if self.plot is not None:
            from scaledyolo.bench.plot import check_plot

            check_plot(self.plot)
        if self.out is not None:
            from scaledyolo.model import SPEC_SUFFIXES

            if self.out.suffix.lower() not in SPEC_SUFFIXES[:2]:
                raise UsageError(f"{self.out}: a spec is written as YAML; name the file {self.out.stem}.yaml")
            if not self.out.parent.is_dir():
                raise UsageError(f"{self.out}: the folder {self.out.parent} does not exist; create it first")

    def _datasets(self) -> tuple[Dataset | None, Dataset | None]:
        """The data set, and that to compare networks by where they are to be trained."""
        if self.data is None:
            return None, None
        from scaledyolo.data.selection import open_pair, open_part

        if self.refine is None:
            dataset, val = open_part((self.data,), self.split), None
        else:
            dataset, val = open_pair((self.data,), self.split, self.val_split)
        if self.classes not in (None, dataset.num_classes):
            raise UsageError(
                f"--classes {self.classes}, but {self.data} has {dataset.num_classes}; leave --classes out"
            )
        return dataset, val

    def _range(self, dataset: Dataset | None) -> Range:
        from scaledyolo.design.candidates import ACTIVATIONS, Range

        classes = dataset.num_classes if dataset is not None else 80 if self.classes is None else self.classes
        least, most = self.size_range
        return Range(
            base=self.base,
            least=least,
            most=most,
            num_classes=classes,
            activations=ACTIVATIONS if self.activation == "auto" else (self.activation,),
        )

    def _write(self, path: Path, spec: ModelSpec, dataset: Dataset | None) -> None:
        from scaledyolo.cli.anchors import write_spec
        from scaledyolo.data.anchors import fit_anchors

        hint = "its anchors are COCO's; fit yours with `scaledyolo anchors`"
        if dataset is not None:
            spec, hint = fit_anchors(spec, dataset).spec, "its anchors fit the data"
        write_spec(path, spec)
        _tell(f"{path}: written, {hint}; train with --model {path}")


def _tell(words: str) -> None:
    """Progress goes to standard error; standard output is the answer alone."""
    print(words, file=sys.stderr, flush=True)
