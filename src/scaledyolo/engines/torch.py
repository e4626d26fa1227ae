"""Torch as an engine: folded weights, channels-last memory, no gradients. For GPUs, and to compare with."""

from __future__ import annotations

import threading
from typing import Final

import torch

from scaledyolo.arch.graph import Graph
from scaledyolo.convert.fold import cascade_pools, fold
from scaledyolo.engines.base import check_images, check_threads, choose
from scaledyolo.errors import UsageError
from scaledyolo.net.network import Network
from scaledyolo.weights import Array, Weights

DEVICES: Final = ("cpu", "cuda")


def available_devices() -> tuple[str, ...]:
    """Devices that torch can use here, the fastest last."""
    return DEVICES if torch.cuda.is_available() else DEVICES[:1]


class TorchEngine:
    """A folded network in torch.

    Args:
        graph: the network.
        weights: exactly ``graph.parameters``, float32.
        device: ``cpu`` or ``cuda``.
        half: compute in float16, on ``cuda`` only; maps still come back as float32.
        threads: CPU threads; torch has one number for the whole process, which is changed. None leaves it.

    Raises:
        CheckpointError: the weights are not those of the graph.
        UsageError: no such device, no GPU, or half precision on a CPU.
    """

    name: Final = "torch"
    batch: Final = None
    size: Final = None

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        *,
        device: str = "cpu",
        half: bool = False,
        threads: int | None = None,
    ) -> None:
        choose("device", device, DEVICES)
        if device not in available_devices():
            raise UsageError("torch sees no GPU here; use device 'cpu'")
        if half and device == "cpu":
            raise UsageError("half precision needs device 'cuda'; a CPU computes float16 more slowly than float32")
        if threads is not None:
            check_threads(threads)
            torch.set_num_threads(threads)
        self.device = device
        self.precision = "float16" if half else "float32"
        self._stride = graph.max_stride if graph.heads else None
        self._channels = graph.channels
        self._dtype = torch.float16 if half else torch.float32
        # Torch gives every calling thread a team of its own, so that runs at once would take the cores from each other.
        self._turn = threading.Lock()
        folded, folded_weights = fold(graph, weights)
        network = Network(cascade_pools(folded), inference=True, fast_mish=device == "cpu")
        network.load(folded_weights)
        network.requires_grad_(False).eval()
        self._network = network.to(device=device, dtype=self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def version(self) -> str:
        """Version of torch."""
        return str(torch.__version__)

    def run(self, images: Array) -> list[Array]:
        """Raw maps of the heads, float32; see :class:`~scaledyolo.engines.base.Engine`."""
        check_images(images, channels=self._channels, stride=self._stride)
        with self._turn, torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device, self._dtype).contiguous(memory_format=torch.channels_last)
            maps = self._network(batch)
            return [raw.to("cpu", torch.float32).contiguous().numpy() for raw in maps]
