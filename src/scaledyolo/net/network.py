"""The torch network: modules registered under the paths of the graph's nodes, run by a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import (
    Activate,
    Activation,
    Add,
    Affine,
    BatchNorm,
    ChannelSplit,
    Concat,
    Conv,
    DepthToSpace,
    Detect,
    GlobalAveragePool,
    Implicit,
    Multiply,
    Pool,
    Reorg,
    SpaceToDepth,
    Upsample,
)
from scaledyolo.arch.quantisation import first_layers, quantisable_layers, rounded_maps
from scaledyolo.errors import SpecError
from scaledyolo.net import layers
from scaledyolo.net.layers import Function
from scaledyolo.net.rounding import RoundedConvolution, round_map
from scaledyolo.weights import Array, Weights, check_weights


class Network(nn.Module):
    """A graph as a torch module.

    ``state_dict()`` has exactly the names and shapes of ``graph.parameters``, in their order. Values are freed as soon
    as no later node reads them. The loop over nodes has no data-dependent branch, so it compiles and exports unrolled.

    Args:
        graph: the network; it is kept as ``network.graph``.
        logits: leave out the last logistic of heads whose map is activated (Darknet's new_coords), as training needs.
        inference: no gradients will be asked for, so values may be overwritten.
        fast_mish: compute Mish in its algebraic form, which is faster on a CPU; for inference only.
        quantised: round weights and maps as OpenVINO will in 8 bits, for training; see :mod:`scaledyolo.net.rounding`.

    Raises:
        SpecError: ``logits`` was asked for and the map of an activated head does not end in a logistic of its own.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        logits: bool = False,
        inference: bool = False,
        fast_mish: bool = False,
        quantised: bool = False,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.quantised = quantised
        run = without_head_logistic(graph) if logits else graph
        in_8_bits = quantisable_layers(run, depthwise=False) if quantised else {}
        rounded = rounded_maps(run, in_8_bits) if quantised else ()
        self._rounds_images = Graph.INPUT in rounded
        factory = _Factory(run, inference, fast_mish, in_8_bits)
        slots = {name: slot for slot, name in enumerate((Graph.INPUT, *(node.name for node in run)))}
        last_use = _last_uses(run)
        self._steps: list[_Step] = []
        for index, node in enumerate(run):
            module, function = _BUILDERS[type(node.op)](factory, node)
            function = layers.then(function, round_map) if node.name in rounded else function
            parent, leaf = self._register(node.name, module) if module is not None else (None, "")
            dead = tuple(slots[name] for name in dict.fromkeys(node.inputs) if last_use[name] == index)
            inputs = tuple(slots[source] for source in node.inputs)
            self._steps.append(_Step(parent, leaf, function, inputs, slots[node.name], dead))
        self._heads = tuple(slots[head.name] for head in run.heads)
        self._num_slots = len(slots)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Run the network.

        Args:
            images: (batch, 3, height, width) in [0, 1]; sides are multiples of the largest stride.

        Returns:
            The raw map of each head, (batch, anchors · (5 + classes), height / stride, width / stride), in head order.
        """
        values: list[Tensor | None] = [None] * self._num_slots
        values[0] = round_map(images) if self._rounds_images else images
        for step in self._steps:
            inputs = [values[slot] for slot in step.inputs]
            for slot in step.dead:
                values[slot] = None
            values[step.output] = step(inputs)
        maps = [values[slot] for slot in self._heads]
        return [raw for raw in maps if raw is not None]  # a named expression here would end torch.compile's graph early

    def load(self, weights: Mapping[str, Array]) -> None:
        """Copy weights in.

        Raises:
            CheckpointError: names, shapes or dtypes are not exactly those of the graph.
        """
        check_weights(self.graph, weights)
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(torch.as_tensor(weights[name]))

    def weights(self) -> Weights:
        """A copy of the weights, float32, named and ordered as in ``graph.parameters``."""
        state = self.state_dict()
        return {name: state[name].to("cpu", torch.float32, copy=True).numpy() for name in self.graph.parameters}

    def _register(self, path: str, module: nn.Module) -> tuple[nn.Module, str]:
        """Put the module where its path says; returns the parent and the last part of the path."""
        *scopes, leaf = path.split(".")
        parent: nn.Module = self
        for scope in scopes:
            if scope not in parent._modules:
                parent.add_module(scope, nn.Module())
            parent = parent.get_submodule(scope)
        if leaf in parent._modules:
            raise SpecError(f"{self.graph.name}: {path!r} is a node and the beginning of another's path; rename one")
        parent.add_module(leaf, module)
        return parent, leaf


@dataclass(frozen=True, slots=True)
class _Step:
    """One node, ready to run.

    The module is looked up in its parent each time, because converting to SyncBatchNorm replaces it there.
    """

    parent: nn.Module | None
    leaf: str
    function: Function
    inputs: tuple[int, ...]
    output: int
    dead: tuple[int, ...]  # slots that no later node reads

    def __call__(self, inputs: list[Tensor | None]) -> Tensor:
        if self.parent is None:
            return self.function(*inputs)
        return self.function(self.parent._modules[self.leaf](*inputs))  # type: ignore[misc]


def _last_uses(graph: Graph) -> Mapping[str, int]:
    """For every name, the index of the last node that reads it; maps of heads are never dead."""
    last = {source: index for index, node in enumerate(graph) for source in node.inputs}
    return last | {head.name: len(graph) for head in graph.heads}


def without_head_logistic(graph: Graph) -> Graph:
    """The graph whose activated heads read logits: the logistic before them is replaced by nothing.

    Raises:
        SpecError: the map of an activated head does not end in a logistic that only this head reads.
    """
    replaced: dict[str, Node] = {}
    for head in graph.heads:
        if not graph.head_op(head).activated:
            continue
        source = head.inputs[0]
        node = graph[source] if source != Graph.INPUT else None
        if (
            node is None
            or not isinstance(node.op, Conv | Activate | Affine | Add | Multiply)
            or node.op.activation != "logistic"
            or graph.consumers[source] != (head.name,)
        ):
            raise SpecError(
                f"{graph.name}: head {head.name!r} is marked as activated, but {source!r} does not end in a logistic "
                "for it alone, so its logits cannot be trained"
            )
        replaced[source] = replace(node, op=replace(node.op, activation="linear"))
    return graph.with_nodes(tuple(replaced.get(node.name, node) for node in graph))


_Built = tuple[nn.Module | None, Function]


class _Factory:
    """Turns a node into its module, or None if it stores nothing, and what to do with inputs or result."""

    def __init__(self, graph: Graph, inference: bool, fast_mish: bool, in_8_bits: Collection[str]) -> None:
        self._graph, self._inference, self._fast_mish = graph, inference, fast_mish
        self._in_8_bits, self._first = in_8_bits, first_layers(graph)

    def _activation(self, activation: Activation, *, fresh: bool = True) -> layers.ActivationFunction:
        return layers.activation_function(activation, fresh=fresh, inference=self._inference, fast_mish=self._fast_mish)

    def conv(self, node: Node) -> _Built:
        """Convolution with normalisation and activation."""
        op = node.op
        assert isinstance(op, Conv)
        (channels,) = self._graph.in_channels(node)
        activation = self._activation(op.activation)
        facts = (channels, op, self._graph.norm_eps, self._graph.norm_momentum, activation)
        if node.name not in self._in_8_bits:
            return layers.Convolution(*facts), layers.identity
        return RoundedConvolution(*facts, first=node.name in self._first), layers.identity

    def batch_norm(self, node: Node) -> _Built:
        """Batch normalisation on its own."""
        assert isinstance(node.op, BatchNorm)
        (channels,) = self._graph.in_channels(node)
        module = layers.BatchNorm(channels, self._graph.norm_eps, self._graph.norm_momentum)
        return module, self._activation(node.op.activation)

    def affine(self, node: Node) -> _Built:
        """Per-channel scale and shift."""
        assert isinstance(node.op, Affine)
        (channels,) = self._graph.in_channels(node)
        return layers.ChannelAffine(channels), self._activation(node.op.activation)

    def implicit(self, node: Node) -> _Built:
        """A learned vector."""
        assert isinstance(node.op, Implicit)
        (channels,) = self._graph.in_channels(node)
        return layers.ImplicitVector(channels, node.op.kind), layers.identity

    def activate(self, node: Node) -> _Built:
        """An activation on its own; its input may have other readers."""
        assert isinstance(node.op, Activate)
        return None, self._activation(node.op.activation, fresh=False)

    def add(self, node: Node) -> _Built:
        """Sum, plain or weighted."""
        op = node.op
        assert isinstance(op, Add)
        if op.weights == "none":
            activation = self._activation(op.activation, fresh=len(node.inputs) > 1)
            return None, layers.then(layers.add, activation)
        shape = op.parameters(*self._graph.in_channels(node))["weights"]
        return layers.WeightedSum(shape, op.normalization), self._activation(op.activation)

    def multiply(self, node: Node) -> _Built:
        """Product; the gradient needs both factors but not the product."""
        assert isinstance(node.op, Multiply)
        return None, layers.then(layers.multiply, self._activation(node.op.activation))

    def pool(self, node: Node) -> _Built:
        """Max or average pooling."""
        op = node.op
        assert isinstance(op, Pool)
        function = layers.max_pool if op.kind == "max" else layers.average_pool
        return None, partial(function, kernel=op.kernel, stride=op.stride, padding=op.padding)

    def upsample(self, node: Node) -> _Built:
        """Nearest-neighbour enlargement."""
        assert isinstance(node.op, Upsample)
        return None, partial(layers.upsample, scale=node.op.scale, gain=node.op.gain)

    def channel_split(self, node: Node) -> _Built:
        """A run of channels."""
        assert isinstance(node.op, ChannelSplit)
        return None, partial(layers.channel_split, groups=node.op.groups, index=node.op.index)

    def space_to_depth(self, node: Node) -> _Built:
        """Blocks of pixels become channels."""
        assert isinstance(node.op, SpaceToDepth)
        return None, partial(layers.space_to_depth, block=node.op.block, order=node.op.order)

    def depth_to_space(self, node: Node) -> _Built:
        """Channels become blocks of pixels."""
        assert isinstance(node.op, DepthToSpace)
        return None, partial(layers.depth_to_space, block=node.op.block)

    def reorg(self, node: Node) -> _Built:
        """YOLOv2's passthrough."""
        assert isinstance(node.op, Reorg)
        return None, partial(layers.reorg, block=node.op.block)

    def concat(self, node: Node) -> _Built:
        """Concatenation of channels."""
        return None, layers.concat

    def global_average_pool(self, node: Node) -> _Built:
        """Mean over all positions."""
        return None, layers.global_average_pool

    def detect(self, node: Node) -> _Built:
        """Nothing is computed."""
        return None, layers.identity


_BUILDERS: Final[Mapping[type, Callable[[_Factory, Node], _Built]]] = {
    Conv: _Factory.conv,
    BatchNorm: _Factory.batch_norm,
    Affine: _Factory.affine,
    Activate: _Factory.activate,
    Pool: _Factory.pool,
    GlobalAveragePool: _Factory.global_average_pool,
    Upsample: _Factory.upsample,
    Concat: _Factory.concat,
    ChannelSplit: _Factory.channel_split,
    Add: _Factory.add,
    Multiply: _Factory.multiply,
    SpaceToDepth: _Factory.space_to_depth,
    DepthToSpace: _Factory.depth_to_space,
    Reorg: _Factory.reorg,
    Implicit: _Factory.implicit,
    Detect: _Factory.detect,
}
