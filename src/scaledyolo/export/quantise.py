"""A network in 8 bits: calibrated on the user's images, as faithful as was asked for, or refused with the reason.

All convolutions but the last ones before the heads are quantised at once. Where a limit on the loss of AP is given and
exceeded, the layers are ranked by measured sensitivity (:mod:`.sensitivity`) and the fewest of the most sensitive that
bring the loss within the limit return to float. Each attempt is quantised anew, so that ranges and bias corrections are
those of the network that is written, and measured in the runtime it is written for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from scaledyolo.arch.cost import cost
from scaledyolo.arch.quantisation import TRAINED_FOR, quantisable_layers
from scaledyolo.artefact import Quantisation
from scaledyolo.convert.fold import fold
from scaledyolo.engines.base import Engine
from scaledyolo.errors import ConversionError, UsageError
from scaledyolo.export.average_precision import average_precision
from scaledyolo.export.calibration import DEFAULT_IMAGES, CalibrationImages, choose_images
from scaledyolo.export.formats import FORMATS, Job, find_format, onnx_model
from scaledyolo.export.report import FINE_TUNING, MAX_AP_DROP
from scaledyolo.export.sensitivity import (
    fewest,
    most_float_layers,
    most_sensitive_first,
    noise,
)
from scaledyolo.runnable import Runnable
from scaledyolo.weights import Array

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset

_SENSITIVITY_IMAGES: Final = 4  # a layer's noise differs between images far less than between layers
_LEAST_SHARE: Final = 0.5  # of the operations in 8 bits: below, bfloat16 is as fast and more faithful
_TIMED_ROUNDS: Final = 15


@dataclass(frozen=True)
class Int8:
    """The wish for a network in 8 bits."""

    calibrate: Path  # data set or folder with images like those that the network will see
    images: int = DEFAULT_IMAGES  # to calibrate on
    split: str = "train"  # of a data set
    max_ap_drop: float | None = None  # points of AP that may be lost; None: MAX_AP_DROP where there is a data set


class Quantiser(Protocol):
    """Quantised versions of one network for one runtime."""

    @property
    def tool(self) -> str:
        """What quantises, with its version."""

    def quantise(self, float_layers: Sequence[str]) -> Path:
        """Write the network with all convolutions but these and the last ones in 8 bits."""

    def open(self, path: Path | None) -> Engine:
        """An engine for a file of `quantise`; None: for the network in float32."""

    def run_float(self, images: Sequence[Array]) -> list[list[Array]]:
        """Raw maps of each image, by the network in float32."""

    def run_alone(self, layer: str, images: Sequence[Array]) -> list[list[Array]]:
        """Raw maps of each image with one convolution in 8 bits and all others in float32."""


def check_int8(wish: Int8, format_name: str, half: bool, data: Dataset | None) -> None:
    """Refuse what cannot be, before anything is computed.

    Raises:
        UsageError: says what to do instead.
    """
    if not find_format(format_name).int8:
        able = " and ".join(name for name, form in FORMATS.items() if form.int8)
        raise UsageError(f"the format {format_name} cannot be quantised here; {able} can")
    if half:
        raise UsageError("a network in 8 bits stores its weights in 8 bits; leave out half")
    if wish.max_ap_drop is not None and data is None:
        raise UsageError("a limit on the loss of AP needs a data set to measure it on; give --data")
    if wish.max_ap_drop is not None and not wish.max_ap_drop >= 0:
        raise UsageError(f"a loss of {wish.max_ap_drop} AP points makes no sense; give 0 or more")


def quantised(job: Job, format_name: str, wish: Int8, data: Dataset | None, folder: Path) -> Job:
    """The job with a network in 8 bits.

    Args:
        job: what is to be written.
        format_name: "openvino" or "onnx".
        wish: how.
        data: data set on which the loss of AP is measured; None: it is not.
        folder: where files are put, this job's too.

    Raises:
        ConversionError: the limit cannot be kept, or 8 bits are not faster here; says what was measured.
        MissingPackageError: the runtime's tool is not installed.
        DataError: there are no images, or one cannot be decoded.
    """
    graph, _ = fold(job.graph, job.weights)
    # OpenVINO computes depthwise convolutions in float even where their input was rounded for them.
    macs = quantisable_layers(graph, depthwise=format_name != "openvino")
    if not macs:
        raise ConversionError(f"{job.graph.name}: has no convolution before its last ones that could be quantised")
    images = choose_images(
        wish.calibrate,
        wish.images,
        height=job.graph.height,
        width=job.graph.width,
        resize=job.facts.resize,
        split=wish.split,
    )
    quantiser = _QUANTISERS[format_name](replace(job, facts=replace(job.facts, nms=None)), macs, images, folder)
    limit = None if data is None else MAX_AP_DROP if wish.max_ap_drop is None else wish.max_ap_drop
    float_layers: tuple[str, ...] = ()
    full_loss: float | None = None
    path = quantiser.quantise(())
    if limit is not None and data is not None:
        gate = _Gate(job, quantiser, macs, images, data, limit)
        float_layers, path = gate.keep(path)
        full_loss = round(gate.full_loss, 2)
    speedup = _speedup(quantiser, path, images) if format_name == "onnx" else None
    facts = Quantisation(
        tool=quantiser.tool,
        calibrated_on=images.source,
        images=len(images),
        float_layers=float_layers,
        int8_share=round(sum(count for name, count in macs.items() if name not in float_layers) / cost(graph).macs, 4),
        max_ap_drop=limit,
        full_ap_drop=full_loss,
        trained_for=job.facts.provenance.get(TRAINED_FOR) == "int8",
        speedup=speedup,
    )
    if job.facts.nms is not None and format_name == "openvino":
        path = _openvino(job, macs, images, folder).quantise(float_layers)
    return replace(job, facts=replace(job.facts, quantisation=facts), quantised=path)


class _Gate:
    """The search for the fewest layers in float that keep the loss of AP within a limit."""

    def __init__(
        self,
        job: Job,
        quantiser: Quantiser,
        macs: Mapping[str, int],
        images: CalibrationImages,
        data: Dataset,
        limit: float,
    ) -> None:
        self._facts = replace(job.facts, nms=None)
        self._quantiser, self._macs, self._images, self._data, self._limit = quantiser, macs, images, data, limit
        self._wanted = self._measure(None)
        self._losses: dict[int, float] = {}  # points of AP by the number of layers in float
        self._paths: dict[int, Path] = {}

    def keep(self, path: Path) -> tuple[tuple[str, ...], Path]:
        """Layers to leave in float, and the file of that network; ``path`` is the one with none of them.

        Raises:
            ConversionError: half of the operations in float are not enough.
        """
        self._paths[0], self._losses[0] = path, self._wanted - self._measure(path)
        if self._losses[0] <= self._limit:
            return (), path
        order = self._by_sensitivity()
        most = most_float_layers(order, self._macs, _LEAST_SHARE)
        count = fewest(lambda number: self._passes(order[:number]), most)
        if count is None:
            raise ConversionError(self._refusal())
        return tuple(order[:count]), self._paths[count]

    @property
    def full_loss(self) -> float:
        """Points of AP that are lost with all layers in 8 bits."""
        return self._losses[0]

    def _refusal(self) -> str:
        number, loss = min(self._losses.items(), key=lambda item: item[1])
        found = f"in 8 bits it loses {self._losses[0]:.2f} points of AP on {self._data.source}"
        if number:
            found += f", and {loss:.2f} with {number} of its convolutions in float"
        else:
            found += ", and its most sensitive convolution alone is more than half of its work"
        remedy = "" if self._facts.provenance.get(TRAINED_FOR) else f"fine-tune it for 8 bits ({FINE_TUNING}), "
        return (
            f"{self._facts.name}: {found}; {self._limit:g} were allowed: "
            f"{remedy}compute it in bfloat16 instead, allow more, or calibrate on more images"
        )

    def _passes(self, float_layers: Sequence[str]) -> bool:
        count = len(float_layers)
        if count not in self._losses:
            self._paths[count] = self._quantiser.quantise(float_layers)
            self._losses[count] = self._wanted - self._measure(self._paths[count])
        return self._losses[count] <= self._limit

    def _measure(self, path: Path | None) -> float:
        """AP in points."""
        network = Runnable(self._quantiser.open(path), self._facts)
        return 100 * average_precision(network, self._data, self._facts)

    def _by_sensitivity(self) -> list[str]:
        images = self._images.sample(_SENSITIVITY_IMAGES)
        expected = self._quantiser.run_float(images)
        noises = {layer: noise(self._quantiser.run_alone(layer, images), expected) for layer in self._macs}
        return most_sensitive_first(noises, self._macs)


def _speedup(quantiser: Quantiser, path: Path, images: CalibrationImages) -> float:
    """How many times faster than float32 the quantised network is in this runtime on this machine.

    Raises:
        ConversionError: not faster at all.
    """
    engines = {"int8": quantiser.open(path), "float32": quantiser.open(None)}
    image = images.input(0)
    batch = np.repeat(image, next(iter(engines.values())).batch or 1, axis=0)
    times = interleaved({name: partial(engine.run, batch) for name, engine in engines.items()})
    ratio = times["float32"] / times["int8"]
    if ratio <= 1:
        raise ConversionError(
            f"in 8 bits this network is not faster in ONNX Runtime on this machine: {1 / ratio:.2f} times the time of "
            f"float32 (medians of {_TIMED_ROUNDS} runs in turns); export it in float32, or in 8 bits for openvino"
        )
    return round(ratio, 2)


def interleaved(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each after one run to warm up, in turns: what else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(_TIMED_ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _openvino(job: Job, macs: Mapping[str, int], images: CalibrationImages, folder: Path) -> Quantiser:
    from scaledyolo.export.quantise_openvino import OpenVinoQuantiser

    model = onnx_model(job, with_metadata=False, mish="native")
    return OpenVinoQuantiser(model, [head.name for head in job.graph.heads], macs, images, folder)


def _onnx(job: Job, macs: Mapping[str, int], images: CalibrationImages, folder: Path) -> Quantiser:
    from scaledyolo.export.quantise_onnx import OnnxQuantiser

    graph, _ = fold(job.graph, job.weights)
    return OnnxQuantiser(onnx_model(job, with_metadata=False), graph, macs, images, folder)


_QUANTISERS: Final = {"openvino": _openvino, "onnx": _onnx}
