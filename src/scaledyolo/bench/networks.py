"""What is measured: the networks that a user names, as files that every process of the benchmark can open."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.classes import default_category_ids, default_names
from scaledyolo.default_model import DEFAULT, default_model_file
from scaledyolo.errors import UsageError
from scaledyolo.model import load_graph, load_model
from scaledyolo.runnable import is_artefact, network_file, read_facts
from scaledyolo.weights import Weights, random_weights


@dataclass(frozen=True)
class Network:
    """A network that can be opened by its files."""

    name: str  # as the user wrote it, with as many of its folders as tell it from others
    files: tuple[str, ...]  # one path, or cfg and weights; none before random weights were written
    height: int  # pixels, by default
    width: int
    graph: Graph | None  # None for an exported file, which has no graph
    random: bool = False  # whether its weights mean nothing
    precision: str | None = None  # of an exported file that computes in one only

    def at(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width for a wish, None meaning its own.

        Raises:
            SpecError: not a multiple of the largest stride, or the network was exported for another size.
        """
        height, width = size or (self.height, self.width)
        if self.graph is not None:
            self.graph.check_size(height, width)
        else:
            read_facts(Path(self.files[0])).check_size(height, width)
        return height, width

    def gflop(self, height: int, width: int) -> float | None:
        """Giga floating-point operations of the convolutions for one image, 2 per multiply-add; None if unknown."""
        return (
            exported_gflop(self.files[0], height, width)
            if self.graph is None
            else cost(self.graph, height, width).gflops
        )

    @property
    def params(self) -> int | None:
        """Learned values; None for an exported file."""
        return None if self.graph is None else cost(self.graph).params

    def written(self, folder: Path) -> Network:
        """The same with files: random weights go into the folder."""
        if self.files or self.graph is None:
            return self
        file = folder / f"{self.graph.name}.safetensors"
        save_checkpoint(file, random_checkpoint(self.graph))
        return replace(self, files=(str(file),))

    def load(self) -> tuple[Graph, Weights]:
        """Graph and weights, for writing them in other formats.

        Raises:
            UsageError: an exported file, which has neither.
        """
        if self.graph is None:
            raise UsageError(f"{self.name} is exported: rivals need the model that it comes from")
        checkpoint = load_model(self.files[0] if len(self.files) == 1 else (self.files[0], self.files[1]))
        return checkpoint.graph, dict(checkpoint.weights)


@cache
def exported_gflop(path: str, height: int, width: int) -> float | None:
    """Like :meth:`Network.gflop` for an .onnx file or an OpenVINO folder; None where OpenVINO cannot read it."""
    if importlib.util.find_spec("openvino") is None:
        return None
    from scaledyolo.engines.openvino import import_openvino

    try:
        model = import_openvino().Core().read_model(str(network_file(Path(path))))
        model.reshape([1, model.inputs[0].partial_shape[1].get_length(), height, width])
    except RuntimeError:
        return None
    macs = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution"):
            out, kernel = node.output(0).get_shape(), node.input(1).get_shape()
            # Of a grouped kernel the first side is the group; in both forms one output channel has the rest.
            macs += math.prod(out) * math.prod(kernel) // out[1]
    return 2 * macs / 1e9


def pair_up(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Models from the words of a command line: a .cfg with the .weights after it is one model.

    Raises:
        UsageError: no model, or a .weights file without its cfg.
    """
    models: list[tuple[str, ...]] = []
    for word in words:
        if word.lower().endswith(".weights") and models and models[-1][-1].lower().endswith(".cfg"):
            models[-1] = (models[-1][0], word)
        else:
            models.append((word,))
    if not models:
        raise UsageError("name at least one model: a zoo name, a checkpoint, cfg and weights, or an exported file")
    return models


def open_network(model: tuple[str, ...]) -> Network:
    """A network from what a user names.

    Args:
        model: a zoo name, a spec file or a cfg alone (random weights: speed does not depend on them), a checkpoint, a
            Darknet pair, an exported file, or ``default``.

    Raises:
        ScaledYoloError: there is no such model, or it is damaged.
    """
    path = Path(model[0])
    if model == (DEFAULT,):
        graph = load_graph(default_model_file())
        return Network(DEFAULT, model, graph.height, graph.width, graph)
    if len(model) == 1 and is_artefact(path):
        facts = read_facts(path)
        precision = None if facts.quantisation is None else facts.quantisation.precision
        return Network(path.name, model, facts.height, facts.width, None, precision=precision)
    graph = load_graph(path.with_suffix(".cfg") if path.suffix.lower() == ".weights" else path)
    if len(model) == 1 and _has_no_weights(path):
        name = path.name if path.suffix else graph.name
        return Network(name, (), graph.height, graph.width, graph, random=True)
    return Network(path.name, model, graph.height, graph.width, graph)


def open_networks(words: Sequence[str]) -> list[Network]:
    """All networks that a user names; checkpoints of one file name keep the folders in which they differ.

    Raises:
        UsageError: see :func:`pair_up`.
        ScaledYoloError: see :func:`open_network`.
    """
    found = [open_network(model) for model in pair_up(words)]
    names = [network.name for network in found]
    return [
        replace(network, name=_told_apart(network, found)) if names.count(network.name) > 1 else network
        for network in found
    ]


def _told_apart(network: Network, all_of_them: Sequence[Network]) -> str:
    """The end of its path that no other network of its name has; its name where the same file was named twice."""
    paths = {Path(other.files[0]).parts for other in all_of_them if other.name == network.name and other.files}
    if len(paths) < 2 or not network.files:
        return network.name
    parts = Path(network.files[0]).parts
    for depth in range(2, len(parts)):
        if sum(path[-depth:] == parts[-depth:] for path in paths) == 1:
            return "/".join(parts[-depth:])
    return str(Path(*parts))


def _has_no_weights(path: Path) -> bool:
    if path.suffix.lower() == ".cfg":
        return not path.with_suffix(".weights").is_file()
    return path.suffix.lower() not in (".safetensors", ".weights")


def random_checkpoint(graph: Graph) -> Checkpoint:
    """A model of random weights."""
    return Checkpoint(
        graph=graph,
        weights=random_weights(graph, np.random.default_rng(0)),
        class_names=default_names(graph.num_classes),
        category_ids=default_category_ids(graph.num_classes),
        provenance={"source": "random weights of a benchmark"},
    )
