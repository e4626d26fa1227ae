"""`scaledyolo eval`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scaledyolo.cli.options import model_source, sides
from scaledyolo.errors import DataError, UsageError, counted

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset
    from scaledyolo.detector import Detector
    from scaledyolo.evaluate.analysis import Analysis
    from scaledyolo.evaluate.arrays import GroundTruth, Predictions
    from scaledyolo.evaluate.bootstrap import PairedComparison
    from scaledyolo.evaluate.protocols import Protocol

_MOST_PAIRS = 3  # classes of other names that are listed
_MOST_CLASSES = 20  # that are listed with their AP; the report has all


@dataclass(frozen=True)
class Eval:
    """Measure a model on a data set: COCO's twelve figures with intervals, and a report of what goes wrong where."""

    model: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL | CFG WEIGHTS")]
    """Checkpoint (.safetensors), Darknet cfg and weights, the name of official weights, or default."""
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")]
    """Folders or files of data sets, taken as one, their classes merged by name."""
    split: str = "val"
    """What to measure on: a split, all, a .txt file that lists images, or a share of any of these: train[80%:]."""
    protocol: str = "coco"
    """Thresholds: coco (0.001, NMS 0.65), training (0.001, 0.6), darknet-map (0.005, 0.45), opencv-darknet."""
    compare: Path | None = None
    """Another checkpoint, compared with this one image by image; --tta holds for both."""
    tta: bool = False
    """Test-time augmentation: look at each image three times, once mirrored and twice shrunk."""
    ensemble: tuple[str, ...] = ()
    """Further checkpoints of the same classes, whose detections are merged with those of the model."""
    merge: Literal["nms", "wbf"] = "nms"
    """How several views of an image become one answer: suppressed together, or fused by weighted boxes."""
    subnet: str | None = None
    """Only this part of the network, such as without-head-p7 or without-stage-p7; what --compare names stays whole."""
    names: Path | None = None
    """File with one class name a line, for Darknet models."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SIDE | HEIGHT WIDTH")] = ()
    """Network input in pixels; by default the model's own."""
    resize: Literal["auto", "letterbox", "stretch"] = "auto"
    """How images are brought to that size; auto: as the model was trained."""
    engine: str = "auto"
    """What runs the network."""
    device: str = "auto"
    """Where it runs: cpu or cuda."""
    batch: int = 8
    """Images that go through the network at once."""
    conf: float = 0.25
    """Score above which errors and confusions are counted."""
    out: Path | None = Path("runs")
    """Folder of all runs; the report goes into a new folder below."""
    json: bool = False
    """Print the figures as JSON and write no report."""
    bad: Literal["fail", "skip", "fix"] = "fix"
    """What to do with broken labels and images."""

    def run(self) -> int:
        from scaledyolo.data.selection import open_part
        from scaledyolo.evaluate.analysis import analyse
        from scaledyolo.evaluate.coco import coco_library
        from scaledyolo.evaluate.explain import explain_low_figures
        from scaledyolo.evaluate.protocols import protocol
        from scaledyolo.evaluate.run import ground_truth
        from scaledyolo.views import describe_views, relative_cost

        coco_library()
        rules = protocol(self.protocol)
        detector = self._detector(model_source(self.model), self.merge, self.ensemble, self.subnet)
        dataset = fitting(open_part(self.data, self.split, bad=self.bad), detector.names)
        truth = ground_truth(dataset)
        found = self._predict(detector, dataset, rules)
        analysis = analyse(truth, found, protocol=rules, confidence=self.conf)
        comparison = self._compare(dataset, rules, analysis) if self.compare else None
        if self.json:
            print(json.dumps(figures(analysis, relative_cost(detector.views)), indent=2))
            return 0
        print(text(analysis, dataset))
        reason = explain_low_figures(truth, found, analysis.coco.ap50)
        if reason is not None:
            print(f"warning: {reason}")
        if len(detector.views) > 1:
            print(describe_views(detector.views, detector.merge))
        if comparison is not None:
            gain = comparison.ap
            print(
                f"this model against {self.compare}: AP {gain.difference.value:+.4f} "
                f"[{gain.difference.low:+.4f}, {gain.difference.high:+.4f}], p = {gain.p_value:.3f}"
            )
        if self.out is not None:
            self._report(detector, dataset, truth, found, analysis, comparison)
        return 0

    def _detector(
        self,
        model: str | tuple[str, str],
        merge: Literal["nms", "wbf"],
        ensemble: tuple[str, ...] = (),
        subnet: str | None = None,
    ) -> Detector:
        from scaledyolo.detector import Detector

        return Detector(
            model,
            size=sides(self.size),
            resize=None if self.resize == "auto" else self.resize,
            engine=self.engine,
            device=self.device,
            half=False,  # figures are of the model, not of the machine that it is measured on
            names=self.names,
            subnet=subnet,
            tta=self.tta,
            ensemble=ensemble,
            merge=merge,
        )

    def _predict(self, detector: Detector, dataset: Dataset, rules: Protocol) -> Predictions:
        from scaledyolo.cli.progress import progress_bar
        from scaledyolo.evaluate.run import predict_views

        if detector.network.facts.nms is not None:
            raise UsageError(
                f"{detector.network.facts.name}: suppression is part of this exported network, but the figures need "
                "every candidate; measure the checkpoint, or what is exported without --nms"
            )
        if len(detector.names) != dataset.num_classes:
            raise DataError(
                f"the model knows {len(detector.names)} classes, {dataset.source} has {dataset.num_classes}; "
                "measure on the data set that the model was trained for"
            )
        with progress_bar(len(dataset)) as advance:
            return predict_views(
                dataset,
                detector.views,
                rules,
                merge=detector.merge,
                resize=detector.resize,
                batch=self.batch,
                progress=advance,
            )

    def _compare(self, dataset: Dataset, rules: Protocol, analysis: Analysis) -> PairedComparison:
        from scaledyolo.evaluate.bootstrap import compare_average_precision
        from scaledyolo.evaluate.matching import match
        from scaledyolo.evaluate.run import ground_truth

        merge = self.merge if self.tta else "nms"  # the other model is no ensemble, so without TTA it has one view
        other = self._predict(self._detector(str(self.compare), merge), dataset, rules)
        matching = match(ground_truth(dataset), other, max_detections=rules.scored_detections)
        return compare_average_precision(matching, analysis.matching)

    def _report(
        self,
        detector: Detector,
        dataset: Dataset,
        truth: GroundTruth,
        found: Predictions,
        analysis: Analysis,
        comparison: PairedComparison | None,
    ) -> None:
        from scaledyolo.evaluate.report import ReportOptions, write_report
        from scaledyolo.outputs.files import create_run_folder
        from scaledyolo.views import describe_views

        assert self.out is not None
        details = {
            "model": " ".join((*self.model, *self.ensemble)),
            "data": f"{dataset.source}, {counted(len(dataset), 'image')}",
            "input": f"{detector.height}x{detector.width}, {detector.resize}",
            **({"views": describe_views(detector.views, detector.merge)} if len(detector.views) > 1 else {}),
            "engine": f"{detector.engine.name} {detector.engine.version} on {detector.engine.device}",
        }
        options = ReportOptions(details=details, compared_with=str(self.compare))
        folder = create_run_folder(self.out, "eval")
        page, numbers = write_report(
            folder, analysis, truth, found, options=options, load_image=dataset.load_image, comparison=comparison
        )
        print(f"report in {page}, figures in {numbers}")


def fitting(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with its classes in the order of the model's; says where they have other names.

    Args:
        dataset: what is measured on.
        names: of the model's classes, in the order of its ids.
    """
    from scaledyolo.data.dataset import in_class_order

    if dataset.names == tuple(names) or len(names) != dataset.num_classes:
        return dataset
    if sorted(names) == sorted(dataset.names) and len(set(names)) == len(names):
        print("the classes of the data are numbered in the order of the model's, by name", file=sys.stderr)
        return in_class_order(dataset, names)
    if names[0] == "class 0":
        return dataset  # a model without names of its own
    pairs = [f"{mine!r} for {theirs!r}" for mine, theirs in zip(names, dataset.names, strict=True) if mine != theirs]
    more = f" and {len(pairs) - _MOST_PAIRS} more" if len(pairs) > _MOST_PAIRS else ""
    print(
        f"warning: the model says {', '.join(pairs[:_MOST_PAIRS])}{more}; classes go by their numbers", file=sys.stderr
    )
    return dataset


def figures(analysis: Analysis, cost: float) -> dict[str, object]:
    """The figures as plain values; those that are not defined are null. cost: pixels seen over those of one view."""

    def plain(value: float) -> float | None:
        return None if value != value else float(value)

    metrics = analysis.coco
    return {
        **{name: plain(value) for name, value in metrics.figures().items()},
        "protocol": analysis.protocol.name,
        "relative_cost": cost,
        "class_ap": {name: plain(ap) for name, ap in zip(metrics.class_names, metrics.class_ap, strict=True)},
        "class_ap50": {name: plain(ap) for name, ap in zip(metrics.class_names, metrics.class_ap50, strict=True)},
    }


def text(analysis: Analysis, dataset: Dataset) -> str:
    """The figures for people."""
    boxes = counted(dataset.annotations.num_boxes, "box", "boxes")
    lines = [f"{dataset.source}: {counted(len(dataset), 'image')}, {boxes}"]
    if dataset.report.counts:
        lines.append(str(dataset.report))
    interval = analysis.intervals
    for name, value in analysis.coco.figures().items():
        spread = (
            f"   95 % interval [{interval.ap.low:.3f}, {interval.ap.high:.3f}]" if name == "AP" and interval else ""
        )
        lines.append(f"  {name:<12}{_shown(value)}{spread}")
    metrics = analysis.coco
    if 1 < len(metrics.class_names) <= _MOST_CLASSES:
        width = max(len("class"), *map(len, metrics.class_names))
        lines.append(f"  {'class':<{width}}      AP    AP50    boxes")
        rows = zip(metrics.class_names, metrics.class_ap, metrics.class_ap50, dataset.class_counts(), strict=True)
        lines += [f"  {name:<{width}}  {_shown(ap)}  {_shown(ap50)}  {count:7}" for name, ap, ap50, count in rows]
    return "\n".join(lines)


def _shown(value: float) -> str:
    """A figure in six letters; a dash where there was nothing to find."""
    return "-".rjust(6) if value != value else f"{value:.4f}"
