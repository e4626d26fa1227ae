"""The default engine against Darknet itself, in turns within one run.

    apt-get install darknet  # Debian's package: the original of 2018, which knows YOLOv2 and YOLOv3
    python benchmarks/darknet_original.py [--model yolov3-tiny] [--size 416] [--rounds 5] [--goal 30]

``darknet speed`` times the network alone, with weights of its own that do not matter for speed. AlexeyAB's fork takes
part with ``--darknet PATH`` and then in networks of YOLOv4 as well; the original ignores what is new in their files.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from scaledyolo import Checkpoint
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find
from scaledyolo.bench.timing import interleaved_samples
from scaledyolo.classes import default_names
from scaledyolo.convert.darknet_cfg import write_cfg
from scaledyolo.engines import describe_engine
from scaledyolo.runnable import open_runnable
from scaledyolo.weights import random_weights

SPEED = re.compile(r"Speed: ([0-9.]+) sec/eval")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    darknet: str = "darknet"
    model: str = "yolov3-tiny"
    size: int = 416  # pixels, height and width
    rounds: int = 5
    goal: float | None = None  # times as fast as Darknet; not met: exit code 1


def darknet_ms(binary: str, cfg: Path) -> float:
    """Milliseconds of one forward pass, as Darknet tells them.

    Raises:
        SystemExit: it did not run; says what it said.
    """
    if shutil.which(binary) is None:
        raise SystemExit(f"{binary} is not a program that can be run; give the path of a darknet binary with --darknet")
    done = subprocess.run([binary, "speed", cfg.name, "1"], cwd=cfg.parent, capture_output=True, text=True)
    found = SPEED.search(done.stdout)
    if found is None:
        raise SystemExit(f"{binary} speed ended with code {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
    return 1e3 * float(found[1])


def default_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one forward pass: the middle of five, since the other process has just emptied the caches."""
    samples = []
    for _ in range(5):
        before = time.perf_counter()
        run()
        samples.append(1e3 * (time.perf_counter() - before))
    return statistics.median(samples)


def main(options: Options) -> int:
    """Measure in turns, print medians and the ratio; 1 where the goal is missed."""
    graph = lower(find(options.model)).with_size(options.size, options.size)
    weights = random_weights(graph, np.random.default_rng(0))
    names = default_names(graph.detects[0].num_classes)
    default = open_runnable(Checkpoint(graph=graph, weights=weights, class_names=names))
    images = np.random.default_rng(1).random((1, graph.channels, options.size, options.size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        cfg = Path(folder, "network.cfg")
        cfg.write_text(write_cfg(graph), encoding="utf-8")
        samples = interleaved_samples(
            {
                "darknet": lambda: darknet_ms(options.darknet, cfg),
                "default": lambda: default_ms(partial(default.run, images)),
            },
            rounds=options.rounds,
            warmup=1,
        )
    print(f"{options.model} {options.size}x{options.size}, default: {describe_engine(default.engine)}")
    for name, values in samples.items():
        print(f"  {name:8} {np.median(values):9.1f} ms, {min(values):.1f} to {max(values):.1f}")
    ratio = float(np.median([a / b for a, b in zip(samples["darknet"], samples["default"], strict=True)]))
    missed = options.goal is not None and ratio < options.goal
    verdict = "" if options.goal is None else f" (goal {options.goal:g}: {'MISSED' if missed else 'reached'})"
    print(f"the default runs at {ratio:.1f} times the speed of darknet{verdict}")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
