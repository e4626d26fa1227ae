"""The card of the default model: what it is, how good, made of what, and what it is not for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from run_records import RunRecord

from scaledyolo.checkpoint import Checkpoint
from scaledyolo.data.dataset import Dataset
from scaledyolo.evaluate.bootstrap import ApBootstrap
from scaledyolo.evaluate.coco import CocoMetrics
from scaledyolo.files import atomic_file

PERSON = "person"
WEAK_AP50 = 0.1  # below, a class is found by luck


@dataclass(frozen=True)
class Measured:
    """The figures of the shipped file."""

    metrics: CocoMetrics
    intervals: ApBootstrap | None
    val: Dataset
    side: tuple[int, int]
    engine: str


@dataclass(frozen=True)
class Speed:
    """Milliseconds for one image in one engine."""

    engine: str
    version: str
    median_ms: float  # from the image to its detections
    p95_ms: float
    network_ms: float  # of these the network, median


@dataclass(frozen=True)
class Card:
    """All that the card tells."""

    model: Checkpoint
    file: Path
    records: Sequence[RunRecord]  # of the trainings that made it, in order
    train: Dataset
    measured: Measured
    speeds: Sequence[Speed]
    machine: str  # on which the speeds were measured

    def text(self) -> str:
        """The page as Markdown."""
        sections = (self._head, self._names, self._accuracy, self._data, self._training, self._speed, self._limits,
                    self._licences, self._classes)  # fmt: skip
        return "\n".join(line for section in sections for line in section()) + "\n"

    def _head(self) -> Iterator[str]:
        count = sum(values.size for name, values in self.model.weights.items() if "running_" not in name)
        yield "# The default model"
        yield ""
        yield (
            f"`{self.model.graph.name}`, {count:,} parameters, COCO's {self.model.graph.num_classes} classes, input "
            f"{self.measured.side[0]}x{self.measured.side[1]}: what `scaledyolo detect photo.jpg` and `Detector()` use "
            f"when no model is named. It comes with the package as float16 safetensors "
            f"({self.file.stat().st_size / 1e6:.1f} MB) and needs no network."
        )
        yield ""
        yield (
            "It is there so that the first command finds something, and as a start for training on your own images. "
            "It is not a model of published accuracy: it has seen one fiftieth of COCO."
        )
        yield ""

    def _names(self) -> Iterator[str]:
        yield "## By what name"
        yield ""
        yield "| name | means |"
        yield "| --- | --- |"
        yield "| no model named, or `default` | this model: the same on every machine, whatever was downloaded |"
        yield (
            f"| `{self.model.graph.name}` | the official weights of that name where they were downloaded, or with "
            "`--download`; else this model, with a notice |"
        )
        yield "| a file | that file |"
        yield ""
        yield (
            "It holds for `detect`, `eval`, `export`, `verify --against`, `describe` and `train --weights`, and for "
            "`Detector` and `load_model` in Python. `SCALEDYOLO_DEFAULT_MODEL` puts a checkpoint of your own in its "
            "place."
        )
        yield ""

    def _accuracy(self) -> Iterator[str]:
        metrics, intervals = self.measured.metrics, self.measured.intervals
        person = metrics.class_names.index(PERSON)
        yield "## Accuracy"
        yield ""
        yield "| | AP | AP50 |"
        yield "| --- | ---: | ---: |"
        spread = f" [{intervals.ap.low:.3f}, {intervals.ap.high:.3f}]" if intervals else ""
        spread50 = f" [{intervals.ap50.low:.3f}, {intervals.ap50.high:.3f}]" if intervals else ""
        yield f"| all classes | **{metrics.ap:.3f}**{spread} | **{metrics.ap50:.3f}**{spread50} |"
        yield f"| person | {metrics.class_ap[person]:.3f} | {metrics.class_ap50[person]:.3f} |"
        yield f"| small, medium, large objects | {_sizes(metrics)} | |"
        yield ""
        yield (
            f"On {len(self.measured.val)} images of COCO val2017 that it was not trained on, protocol `coco`, "
            f"{self.measured.engine} in float32, of the file as shipped; intervals are a bootstrap over images at 95 %."
        )
        yield ""
        yield "```console"
        yield "$ scaledyolo eval default --data ../shared/data/coco_mini"
        yield "```"
        yield ""
        yield (
            "For scale: Yolo-Fastest-1.1-XL, with 0.92 M parameters but all 118,000 training images of COCO, has AP "
            "0.170 and AP50 0.339 on the same images as OpenCV imports it, 0.194 and 0.399 with Darknet's threshold. "
            f"So far do {len(self.train):,} images carry."
        )
        yield ""

    def _data(self) -> Iterator[str]:
        counts = self.train.class_counts()
        total, person = counts.sum(), counts[self.train.names.index(PERSON)]
        unseen, rare = int((counts == 0).sum()), int((counts < 50).sum())
        sides = self.train.annotations.sizes.max(axis=1)
        yield "## Data"
        yield ""
        yield (
            f"{len(self.train):,} images of COCO val2017 (`coco_mini/train`), shrunk to a long side of "
            f"{int(np.median(sides))} pixels, with {total:,} boxes. Crowds are not flagged in it. {person:,} boxes "
            f"({100 * person / total:.0f} %) are persons; {rare} classes have fewer than 50 boxes"
            + (f", {unseen} none at all." if unseen else ".")
        )
        yield ""
        yield (
            "As it was trained on images of val2017, its figures on the whole of val2017 would flatter; measure it "
            "on the images above, or on others."
        )
        yield ""

    def _training(self) -> Iterator[str]:
        last = self.records[-1]
        yield "## Training"
        yield ""
        yield "```console"
        for record in self.records:
            yield f"$ {record.command}"
        yield "```"
        yield ""
        rows = {
            "start": ["random weights", *["the best checkpoint of the training before"] * (len(self.records) - 1)],
            "epochs": [f"{len(record.epochs)}, the best {_best_epoch(record)}" for record in self.records],
            "time": [f"{record.seconds / 3600:.1f} hours" for record in self.records],
            "seed": [str(record.document["seed"]) for record in self.records],
            "commit": [record.commit for record in self.records],
            "machine": [record.machine for record in self.records],
        }
        yield "| |" + " |" * len(self.records)
        yield "| --- |" + " --- |" * len(self.records)
        for name, values in rows.items():
            yield f"| {name} | {' | '.join(values)} |"
        yield ""
        yield "Shipped is the moving average, convolutions as float16, all else as float32."
        yield ""
        yield (
            f"The best of {len(last.curve)} evaluations was chosen on the same images that the figures above come "
            "from, which flatters them a little."
        )
        yield ""

    def _speed(self) -> Iterator[str]:
        yield "## Speed"
        yield ""
        if not self.speeds:
            yield "Not measured with this build: `python scripts/make_default_model.py CHECKPOINT --speed`."
            yield ""
            return
        yield "| engine | image to detections, median | 95 % below | of it the network |"
        yield "| --- | ---: | ---: | ---: |"
        for speed in sorted(self.speeds, key=lambda item: item.median_ms):
            yield (
                f"| {speed.engine} {speed.version} | {speed.median_ms:.1f} ms | {speed.p95_ms:.1f} ms | "
                f"{speed.network_ms:.1f} ms |"
            )
        yield ""
        yield (
            f"One image at a time, {self.measured.side[0]}x{self.measured.side[1]}, engines in turns within one run, "
            f"on {self.machine}."
        )
        yield ""

    def _limits(self) -> Iterator[str]:
        yield "## Limits"
        yield ""
        found = self.measured.metrics.class_ap50
        weak = int((found < WEAK_AP50).sum())
        yield (
            f"- {weak} of the {int((found == found).sum())} classes that could be measured have an AP50 below "
            f"{WEAK_AP50}: of most things it has seen too little. The last table tells each."
        )
        yield "- It was trained on small images: objects of a few pixels are missed."
        yield (
            "- Scores are no probabilities. Choose `--conf` for your images; the report of `scaledyolo eval` shows "
            "what a threshold costs."
        )
        yield "- Do not let it decide about people, nor where safety depends on it."
        yield ""

    def _licences(self) -> Iterator[str]:
        yield "## Licences"
        yield ""
        yield (
            "The weights are Apache-2.0, as the package is. They were trained on photographs of COCO, which stay under "
            "the terms of their Flickr authors and are not part of the package, with COCO's annotations (CC BY 4.0, "
            "the COCO Consortium). Whether training on photographs needs more than that is judged differently in "
            "different countries; who needs certainty trains on images of their own."
        )
        yield ""

    def _classes(self) -> Iterator[str]:
        metrics = self.measured.metrics
        trained, present = self.train.class_counts(), self.measured.val.class_counts()
        yield "## Each class"
        yield ""
        yield "| class | boxes trained on | boxes measured on | AP | AP50 |"
        yield "| --- | ---: | ---: | ---: | ---: |"
        for row, name in enumerate(metrics.class_names):
            yield (
                f"| {name} | {trained[row]:,} | {present[row]:,} | {_figure(metrics.class_ap[row])} | "
                f"{_figure(metrics.class_ap50[row])} |"
            )


def _best_epoch(record: RunRecord) -> int:
    scored = [row for row in record.epochs if "ap" in row]
    return int(max(scored, key=lambda row: row["ap"])["epoch"])


def _sizes(metrics: CocoMetrics) -> str:
    return ", ".join(_figure(value) for value in (metrics.ap_small, metrics.ap_medium, metrics.ap_large))


def _figure(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def write_card(path: Path, card: Card) -> None:
    """Write the page atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(card.text(), encoding="utf-8")
