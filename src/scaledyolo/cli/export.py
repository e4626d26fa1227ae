"""`scaledyolo export`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scaledyolo.cli.exit_codes import EXIT_UNVERIFIED
from scaledyolo.cli.options import model_source, sides
from scaledyolo.errors import UsageError

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset
    from scaledyolo.export import ExportReport, Int8


@dataclass(frozen=True)
class Export:
    """Write a model in the format of another runtime, and prove that it computes the same.

    What differs from the network is marked UNVERIFIED, and the exit code is not zero.
    """

    model: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL | CFG WEIGHTS")]
    """Checkpoint (.safetensors), Darknet cfg and weights, the name of official weights, or default."""
    format: str = "onnx"
    """onnx, openvino, torchscript, torch-export, darknet, ncnn, tflite or coreml."""
    out: Path | None = None
    """File or folder to create, or a folder to put it in; by default the current one, named as the model is."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SIDE | HEIGHT WIDTH")] = ()
    """Network input in pixels; by default the model's own."""
    subnet: str | None = None
    """Only this part of the network, such as without-head-p7 or without-stage-p7."""
    dynamic: bool = False
    """Leave height and width free: any multiple of the largest stride."""
    batch: int = 0
    """Images at a time; 0: any number."""
    half: bool = False
    """Store weights as float16, half the size; they are computed with as the runtime likes."""
    int8: bool = False
    """Quantise to 8 bits; needs --calibrate. Last convolutions and decoding stay in float."""
    calibrate: Path | None = None
    """With --int8: data set (its train split) or folder with images like those that the network will see."""
    calibration_images: int = 128
    """With --int8: how many of them."""
    max_ap_drop: float | None = None
    """With --int8 and --data: points of AP that may be lost, 1 by default; sensitive layers return to float for it."""
    nms: bool = False
    """Make decoding and suppression part of the graph: fixed rows (x1, y1, x2, y2, score, class) and a count."""
    conf: float = 0.25
    """With --nms: lowest score."""
    iou: float = 0.45
    """With --nms: overlap above which the weaker of two boxes is dropped."""
    agnostic: bool = False
    """With --nms: boxes of different classes suppress each other too."""
    max_det: int = 300
    """With --nms: rows for each image."""
    verify: bool = True
    """Compare the result with the network; without, it is marked as pending."""
    images: tuple[Path, ...] = ()
    """Photographs to compare on; by default built-in ones."""
    data: Path | None = None
    """Data set on which average precision is compared as well."""
    split: str = "val"
    """Split of it."""
    names: Path | None = None
    """File with one class name a line, for Darknet models."""
    download: bool = False
    """Fetch official weights that are not in the cache yet."""
    force: bool = False
    """Replace an exported model that exists."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        from scaledyolo.artefact import EmbeddedNms
        from scaledyolo.export import export
        from scaledyolo.export.formats import find_format
        from scaledyolo.model import load_model
        from scaledyolo.subnet import subnet_checkpoint

        find_format(self.format)  # before anything is read
        if (self.images or self.data) and not self.verify:
            raise UsageError("--images and --data are for comparing; leave out --no-verify")
        nms = EmbeddedNms(self.conf, self.iou, self.max_det, self.agnostic) if self.nms else None
        source = model_source(self.model, download=self.download)
        model = load_model(source, names=self.names, download=self.download)
        report = export(
            subnet_checkpoint(model, self.subnet) if self.subnet else model,
            self.out,
            source=source,
            format=self.format,
            size=sides(self.size),
            dynamic=self.dynamic,
            batch=self.batch or None,
            nms=nms,
            half=self.half,
            int8=self._int8(),
            verified=self.verify,
            images=self.images,
            data=open_data(self.data, self.split),
            name=self._name(),
            force=self.force,
        )
        print(json.dumps(as_dict(report), indent=1) if self.json else text(report))
        return EXIT_UNVERIFIED if report.facts.verification == "UNVERIFIED" else 0

    def _name(self) -> str | None:
        """The artefact is called as the file that it is made of: my.safetensors gives my.onnx."""
        weights = Path(self.model[-1])
        if not weights.is_file():
            return None  # the name of a network
        return f"{weights.stem}-{self.subnet}" if self.subnet else weights.stem

    def _int8(self) -> Int8 | None:
        from scaledyolo.export import Int8

        if not self.int8:
            if self.calibrate is not None or self.max_ap_drop is not None:
                raise UsageError("--calibrate and --max-ap-drop belong to --int8; add it")
            return None
        if self.calibrate is None:
            raise UsageError(
                "--int8 needs images like those that the network will see; give --calibrate DATA_OR_FOLDER"
            )
        return Int8(self.calibrate, self.calibration_images, max_ap_drop=self.max_ap_drop)


def open_data(data: Path | None, split: str) -> Dataset | None:
    """The data set of `--data`."""
    if data is None:
        return None
    from scaledyolo.data.formats import open_dataset

    return open_dataset(data, split=split)


def as_dict(report: ExportReport) -> dict[str, object]:
    """The report as plain values."""
    checked = report.verification
    return {
        "path": str(report.path),
        "bytes": report.num_bytes,
        "verification": report.facts.verification,
        "report": None if checked is None else checked.to_dict(),
    }


def text(report: ExportReport) -> str:
    """The report for people."""
    size = f"{report.path}: {report.num_bytes / 2**20:,.1f} MiB"
    if report.verification is None:
        where = " on macOS, which alone runs it" if report.path.suffix == ".mlpackage" else ""
        return f"{size}, not compared with the network; do it with `scaledyolo verify {report.path}`{where}"
    return f"{size}\n{report.verification.summary()}"
