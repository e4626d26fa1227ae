"""What Mish costs where torch has to run the network on a CPU: a Mish network against the same one with SiLU.

    python benchmarks/torch_fallback.py [--model yolov4-csp] [--size 640] [--threads 2] [--rounds 7]

Both run in the torch engine, in turns, and so do the forms of Mish that the engine could have used instead. The ratio
to reach is 1.3. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import tyro

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activated, Activation
from scaledyolo.arch.zoo import find
from scaledyolo.bench.timing import interleaved
from scaledyolo.engines.torch import TorchEngine
from scaledyolo.host import usable_cores
from scaledyolo.net import layers
from scaledyolo.weights import random_weights

GOAL = 1.3


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str = "yolov4-csp"
    size: int = 640  # pixels, height and width
    threads: int | None = None  # by default one for each core
    rounds: int = 7


def with_activation(graph: Graph, activation: Activation) -> Graph:
    """The graph with another activation wherever it has Mish."""
    nodes = tuple(
        replace(node, op=replace(node.op, activation=activation))
        if isinstance(node.op, Activated) and node.op.activation == "mish"
        else node
        for node in graph
    )
    return graph.with_nodes(nodes)


def main(options: Options) -> int:
    """Measure in turns and print medians and ratios; 1 where the goal is missed."""
    threads = options.threads or usable_cores()
    graph = lower(find(options.model)).with_size(options.size, options.size)
    weights = random_weights(graph, np.random.default_rng(0))
    images = np.random.default_rng(1).random((1, graph.channels, options.size, options.size), np.float32)
    activations: dict[str, Activation] = {"SiLU": "swish", "leaky": "leaky", "Mish": "mish"}
    engines = {
        name: TorchEngine(with_activation(graph, activation), weights, threads=threads)
        for name, activation in activations.items()
    }
    for name, form in (
        ("Mish, algebraic in one piece", layers.mish_algebraic),
        ("Mish, torch's own", torch.nn.functional.mish),
    ):
        engines[name] = engine = TorchEngine(graph, weights, threads=threads)
        for module in engine._network.modules():
            if isinstance(getattr(module, "activation", None), partial):
                module.activation = form  # type: ignore[assignment]
    timings = interleaved({name: partial(one.run, images) for name, one in engines.items()}, rounds=options.rounds)
    print(f"{options.model} {options.size}x{options.size}, torch {torch.__version__}, {threads} thread(s)")
    reference = timings["SiLU"].samples_ms
    ratios = {}
    for name, timing in timings.items():
        ratios[name] = float(np.median(np.divide(timing.samples_ms, reference)))
        print(f"  {name:30} {timing.median_ms:8.1f} ms  noise {timing.noise:4.2f}   {ratios[name]:5.2f} times SiLU")
    print(f"goal {GOAL}: {'reached' if ratios['Mish'] <= GOAL else 'MISSED'}")
    return int(ratios["Mish"] > GOAL)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
