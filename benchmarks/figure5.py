"""The paper's Figure 5 on any trained network: AP against input size, for the network and for what it contains.

    python benchmarks/figure5.py network --classes 3 --size 384 --out narrow-p6.yaml
    scaledyolo train --model narrow-p6.yaml --data DATA
    python benchmarks/figure5.py measure runs/train/best.safetensors --data DATA --out figure5

The paper takes the coarsest stages from a trained YOLOv4-P7 and finds the whole network best at high resolution, the
one without P7 at middle, the one without P7 and P6 at low resolution (section 5.5). `measure` evaluates a network and
its subnets at one list of sizes under the COCO protocol, with paired bootstrap intervals of the difference to the whole
network at the same size, and writes figure5.json and figure5.svg. `network` writes a P6 that is narrow and shallow
enough to learn on a CPU: a quarter of the width, a third of the depth, leaky activations, anchors scaled with the size.

By default the exact subnets are measured, which remove heads only, as the paper's text says, and the approximate ones,
which remove the stage too; --subnets names others, or `none`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.scaling import scaled, with_activation
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.subnet import cut, subnet_names
from scaledyolo.arch.zoo import find
from scaledyolo.checkpoint import Checkpoint, load_checkpoint
from scaledyolo.cli import main as run_verb
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.formats import open_dataset
from scaledyolo.errors import ScaledYoloError, UsageError
from scaledyolo.evaluate.arrays import GroundTruth, Predictions
from scaledyolo.evaluate.bootstrap import compare_average_precision
from scaledyolo.evaluate.coco import coco_metrics
from scaledyolo.evaluate.matching import match
from scaledyolo.evaluate.protocols import COCO
from scaledyolo.evaluate.run import ground_truth, predict
from scaledyolo.files import atomic_file
from scaledyolo.runnable import open_runnable
from scaledyolo.subnet import subnet_checkpoint

WIDTH, DEPTH = 1 / 4, 1 / 3
LEVELS_REMOVED = 2  # the paper's figure: the coarsest, and the two coarsest
STEPS = 6  # input sizes, from half of the network's own to a fifth above it

Point = dict[str, "float | dict[str, float] | None"]  # figures at one size, as JSON has them


def narrow_p6(num_classes: int, size: int) -> ModelSpec:
    """YOLOv4-P6 at a quarter of the width and a third of the depth, for a square input of ``size`` pixels."""
    large = find("yolov4-p6")
    spec = scaled(large, width=WIDTH, depth=DEPTH, size=size)
    factor = size / large.size
    anchors = tuple((round(width * factor, 1), round(height * factor, 1)) for width, height in large.anchors)
    return replace(with_activation(spec, "leaky"), name="yolov4-p6-narrow", anchors=anchors, num_classes=num_classes)


def default_sizes(side: int, stride: int) -> tuple[int, ...]:
    """Multiples of the stride from half of ``side`` to a fifth above it, at most :data:`STEPS`, evenly."""
    every = list(range(max(side // 2 // stride, 1) * stride, int(1.2 * side) + 1, stride))
    if len(every) <= STEPS:
        return tuple(every)
    return tuple(every[round(index * (len(every) - 1) / (STEPS - 1))] for index in range(STEPS))


def default_subnets(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The cuts that remove the coarsest level and the two coarsest, exact and approximate."""
    names = subnet_names(checkpoint.graph)
    heads, stages = ([name for name in names if part in name] for part in ("head", "stage"))
    return (*heads[:LEVELS_REMOVED], *stages[:LEVELS_REMOVED])


def measure(
    checkpoint: Checkpoint, data: Dataset, sizes: Sequence[int], subnets: Sequence[str], *, batch: int = 8
) -> dict[str, Any]:
    """AP of the network and of its subnets at every size, as plain values."""
    truth = ground_truth(data)
    whole: dict[int, Predictions] = {}
    curves = []
    scores: dict[str, list[float]] = {}  # AP of each network, size by size; 0 where it is not defined
    for name in ("", *subnets):
        part = subnet_checkpoint(checkpoint, name) if name else checkpoint
        runnable = open_runnable(part, half=False)
        points = []
        scores[name] = []
        for size in sizes:
            graph = part.graph
            found = predict(data, runnable.run, graph.detects, size, size, COCO, resize=graph.resize, batch=batch)
            whole.setdefault(size, found)
            figures = coco_metrics(truth, found).figures()
            plain = _plain(figures)
            point: Point = {"size": size, "gflops": round(cost(graph, size, size).gflops, 3), **plain}
            if name:
                point["difference"] = _difference(truth, found, whole[size])
            points.append(point)
            scores[name].append(plain["AP"] or 0.0)
            print(f"{name or 'the whole network':<22}{size:>6}  AP {figures['AP']:.4f}", flush=True)
        exact = not name or cut(checkpoint.graph, name).exact
        curves.append({"subnet": name, "exact": exact, "params": cost(part.graph).params, "points": points})
    best = {size: max(scores, key=lambda name: scores[name][row]) for row, size in enumerate(sizes)}
    return {
        "network": checkpoint.graph.name,
        "provenance": dict(checkpoint.provenance),
        "data": data.source,
        "images": len(data),
        "protocol": COCO.name,
        "curves": curves,
        "best_by_size": {str(size): name for size, name in best.items()},
    }


def _plain(figures: dict[str, float]) -> dict[str, float | None]:
    """Figures without those that are not defined, as for a size of objects that the data do not have."""
    return {name: None if value != value else round(float(value), 5) for name, value in figures.items()}


def _difference(truth: GroundTruth, part: Predictions, whole: Predictions) -> dict[str, float]:
    """AP of the subnet minus that of the whole network at the same size, with its 95 % interval."""
    one, other = (match(truth, item, max_detections=COCO.scored_detections) for item in (whole, part))
    difference = compare_average_precision(one, other).ap.difference
    return {key: round(float(getattr(difference, key)), 5) for key in ("value", "low", "high")}


def draw(result: dict[str, Any], path: Path) -> None:
    """Two panels: AP against input size, and its difference to the whole network, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, curve in enumerate(result["curves"]):
        sizes = [point["size"] for point in curve["points"]]
        style = {"color": f"C{index}", "marker": "o", "linestyle": "-" if curve["exact"] else "--"}
        values = [100 * (point["AP"] or 0) for point in curve["points"]]
        left.plot(sizes, values, label=curve["subnet"] or result["network"], **style)
        if curve["subnet"]:
            told = [point["difference"] for point in curve["points"]]
            middle = [100 * value["value"] for value in told]
            spread = [
                [100 * max(value["value"] - value["low"], 0) for value in told],
                [100 * max(value["high"] - value["value"], 0) for value in told],
            ]
            right.errorbar(sizes, middle, yerr=spread, capsize=3, label=curve["subnet"], **style)
    right.axhline(0, color="C0", linewidth=1)
    for axes, label in ((left, "AP"), (right, "AP minus that of the whole network")):
        axes.set_xlabel("input size in pixels")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"{result['network']} on {result['images']} images (dashed: approximate subnets)")
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    network = commands.add_parser("network", help="write the narrow P6 as a spec file")
    network.add_argument("--classes", type=int, required=True)
    network.add_argument("--size", type=int, default=384)
    network.add_argument("--out", type=Path, required=True)
    measured = commands.add_parser("measure", help="AP against input size")
    measured.add_argument("checkpoint", type=Path)
    measured.add_argument("--data", required=True)
    measured.add_argument("--split", default="val")
    measured.add_argument("--sizes", type=int, nargs="+", default=())
    measured.add_argument("--subnets", nargs="+", default=())
    measured.add_argument("--batch", type=int, default=8)
    measured.add_argument("--out", type=Path, default=Path("figure5"))
    options = parser.parse_args(arguments)
    try:
        return _network(options) if options.command == "network" else _measure(options)
    except ScaledYoloError as error:
        parser.exit(2, f"figure5: {error}\n")


def _network(options: argparse.Namespace) -> int:
    spec = narrow_p6(options.classes, options.size)
    lower(spec)  # a size that does not go through is said here
    with atomic_file(options.out) as temporary:
        temporary.write_text(yaml.safe_dump(spec.to_dict(), sort_keys=False), encoding="utf-8")
    return run_verb(["describe", str(options.out)])


def _measure(options: argparse.Namespace) -> int:
    checkpoint = load_checkpoint(options.checkpoint)
    graph = checkpoint.graph
    sizes = tuple(options.sizes) or default_sizes(graph.height, graph.max_stride)
    for size in sizes:
        graph.check_size(size, size)
    subnets = () if list(options.subnets) == ["none"] else tuple(options.subnets) or default_subnets(checkpoint)
    data = open_dataset(options.data, options.split)
    if data.num_classes != graph.num_classes:
        raise UsageError(f"{data.source} has {data.num_classes} classes, the network {graph.num_classes}")
    result = measure(checkpoint, data, sizes, subnets, batch=options.batch)
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic_file(options.out / "figure5.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(result, options.out / "figure5.svg")
    for size, name in result["best_by_size"].items():
        print(f"best at {size}: {name or 'the whole network'}")
    print(f"figures in {options.out / 'figure5.json'}, drawing in {options.out / 'figure5.svg'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
