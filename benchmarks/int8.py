"""What 8 bits win in time and cost in AP: float32, bfloat16 and int8 in turns within one run.

    python benchmarks/int8.py [--model yolov4-tiny] [--size 416] [--threads 1] [--rounds 30] [--recipes]
    python benchmarks/int8.py --model MODEL.cfg --calibrate DATA --data DATA

MODEL is a network of the zoo, then with random weights and calibrated on drawn scenes, for speed depends on neither; or
a file with weights. With --data its AP on the split "val" is measured in each precision. With --recipes ONNX Runtime's
other ways to quantise are timed too: the one that `scaledyolo export --int8` takes should be as fast as any of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import tyro
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from scaledyolo import Checkpoint, load_model
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import ZOO, find
from scaledyolo.bench.timing import interleaved
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.data.formats import open_dataset
from scaledyolo.engines import describe_engine
from scaledyolo.engines.faithful import scene
from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
from scaledyolo.engines.openvino import available_precisions
from scaledyolo.errors import ConversionError
from scaledyolo.export import Int8, export
from scaledyolo.export.average_precision import average_precision
from scaledyolo.runnable import Runnable, open_runnable
from scaledyolo.weights import Array, random_weights

GOAL = 1.4  # times the speed of bfloat16
SCENES = 8


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str = "yolov4-tiny"
    size: int = 0  # pixels, height and width; 0: the model's own
    batch: int = 1
    threads: int = 1
    rounds: int = 30
    calibrate: Path | None = None  # data set or folder; by default drawn scenes
    data: Path | None = None  # data set whose split "val" gives AP
    recipes: bool = False


def load(options: Options) -> Checkpoint:
    """The model, with random weights where it has none."""
    if options.model not in ZOO:
        return load_model(options.model)
    graph = lower(find(options.model))
    return Checkpoint(
        graph=graph,
        weights=random_weights(graph, np.random.default_rng(0)),
        class_names=tuple(f"class {number}" for number in range(graph.num_classes)),
    )


def draw_scenes(folder: Path) -> Path:
    """Pictures to calibrate on."""
    for seed in range(SCENES):
        picture = (scene(3, 480, 640, seed) * 255).astype(np.uint8).transpose(1, 2, 0)
        cv2.imwrite(str(folder / f"{seed}.png"), picture)
    return folder


def contestants(model: Checkpoint, options: Options, size: tuple[int, int], folder: Path) -> dict[str, Runnable]:
    """The network in every runtime and precision."""
    on_cpu = partial(open_runnable, device="cpu", threads=options.threads)
    opened = {
        "onnxruntime float32": on_cpu(model, engine="onnxruntime", half=False),
        "openvino float32": on_cpu(model, engine="openvino", half=False),
    }
    if "bfloat16" in available_precisions("cpu"):
        opened["openvino bfloat16"] = on_cpu(model, engine="openvino", half=True)
    scenes = folder / "scenes"
    scenes.mkdir()
    wish = Int8(options.calibrate or draw_scenes(scenes))
    for form, engine in (("openvino", "openvino"), ("onnx", "onnxruntime")):
        try:
            report = export(model, folder, format=form, size=size, int8=wish, verified=False)
        except ConversionError as error:
            print(f"{engine} int8: {error}")
            continue
        opened[f"{engine} int8"] = on_cpu(report.path, engine=engine, half=False)
    return opened


RECIPES = {
    "all operators, u8 s8 per channel": ({}, QuantFormat.QDQ),
    "convolutions only": ({"op_types_to_quantize": ["Conv"]}, QuantFormat.QDQ),
    "signed activations": ({"activation_type": QuantType.QInt8}, QuantFormat.QDQ),
    "unsigned weights": ({"weight_type": QuantType.QUInt8, "per_channel": False}, QuantFormat.QDQ),
    "one scale for all channels": ({"per_channel": False}, QuantFormat.QDQ),
    "operators instead of pairs": ({}, QuantFormat.QOperator),
}


def recipes(model: Checkpoint, size: tuple[int, int], threads: int, folder: Path) -> dict[str, OnnxRuntimeEngine]:
    """The network as ONNX Runtime quantises it in different ways, over all operators that it knows."""
    plain = folder / "plain.onnx"
    graph = model.graph.with_size(*size)
    onnx.save(onnx.shape_inference.infer_shapes(to_onnx(graph, dict(model.weights))), plain)
    engines: dict[str, OnnxRuntimeEngine] = {}
    for name, (choice, form) in RECIPES.items():
        path = folder / f"recipe{len(engines)}.onnx"
        common = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(plain, path, _Scenes(size), quant_format=form, **(common | choice))
        engines[name] = OnnxRuntimeEngine(path, threads=threads)
    return engines


class _Scenes(CalibrationDataReader):  # type: ignore[misc]  # no types published
    """Drawn scenes as ONNX Runtime wants to be given them."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._images: Iterator[Array] = (scene(3, *size, seed)[None] for seed in range(SCENES))

    def get_next(self) -> dict[str, Array] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image}


def main(options: Options) -> None:
    """Measure and print."""
    model = load(options)
    size = (options.size, options.size) if options.size else (model.graph.height, model.graph.width)
    model = Checkpoint(**{**model.__dict__, "graph": model.graph.with_size(*size)})
    images = np.stack([scene(3, *size, seed) for seed in range(options.batch)])
    with tempfile.TemporaryDirectory() as name:
        opened = contestants(model, options, size, Path(name))
        runs = {key: partial(network.run, images) for key, network in opened.items()}
        if options.recipes:
            others = recipes(model, size, options.threads, Path(name))
            runs |= {f"onnxruntime: {key}": partial(engine.run, images[:1]) for key, engine in others.items()}
        times = interleaved(runs, rounds=options.rounds)
        print(f"{options.model} {size[0]}x{size[1]}, batch {options.batch}, {options.threads} thread(s)")
        first = times["openvino float32"].median_ms
        for key, timing in times.items():
            print(f"{key:52s} {timing.median_ms:8.2f} ms {first / timing.median_ms:6.2f} x  noise {timing.noise:.2f}")
        if {"openvino bfloat16", "openvino int8"} <= times.keys():
            ratio = times["openvino bfloat16"].median_ms / times["openvino int8"].median_ms
            print(f"int8 is {ratio:.2f} times as fast as bfloat16 in OpenVINO (goal: {GOAL})")
        print(*(f"{key}: {describe_engine(network.engine)}" for key, network in opened.items()), sep="\n")
        if options.data is not None:
            data = open_dataset(options.data, split="val")
            for key, network in opened.items():
                ap = 100 * average_precision(network, data, opened["openvino float32"].facts)
                print(f"{key:52s} AP {ap:6.2f} on {len(data)} images")


if __name__ == "__main__":
    main(tyro.cli(Options))
