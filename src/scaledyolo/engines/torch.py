"""Torch as an engine: folded weights, channels-last memory, no gradients. For GPUs, and to compare with.

What is for GPUs only was written without one at hand and never ran on one; where it fails or differs from the plain way
the plain way is taken.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor

from scaledyolo.arch.graph import Graph
from scaledyolo.convert.fold import cascade_pools, fold
from scaledyolo.engines.base import check_images, check_threads, choose
from scaledyolo.errors import UsageError
from scaledyolo.net.network import Network
from scaledyolo.weights import Array, Weights

DEVICES: Final = ("cpu", "cuda")
MAX_GRAPHS: Final = 8  # captured shapes kept at a time
_WARM_UPS: Final = 3  # runs before a capture, in which cuDNN chooses its algorithms
_GRAPH_TOLERANCE: Final = 0.02  # largest difference of a replay, relative to the largest value: other algorithms
Forward = Callable[[Tensor], Sequence[Tensor]]


def available_devices() -> tuple[str, ...]:
    """Devices that torch can use here, the fastest last."""
    return DEVICES if torch.cuda.is_available() else DEVICES[:1]


def inference_network(graph: Graph, weights: Weights, device: str, dtype: torch.dtype) -> Network:
    """The folded network on a device, in channels-last memory, without gradients.

    Raises:
        CheckpointError: the weights are not those of the graph.
    """
    folded, folded_weights = fold(graph, weights)
    network = Network(cascade_pools(folded), inference=True, fast_mish=device == "cpu")
    network.load(folded_weights)
    network.requires_grad_(False).eval()
    return network.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class TorchEngine:
    """A folded network in torch.

    Args:
        graph: the network.
        weights: exactly ``graph.parameters``, float32.
        device: ``cpu`` or ``cuda``.
        half: compute in float16, on ``cuda`` only; maps still come back as float32.
        threads: CPU threads; torch has one number for the whole process, which is changed. None leaves it.
        capture: on ``cuda``, record every shape as a CUDA graph when it is first met, and replay it from then on.
        compiled: let ``torch.compile`` write kernels of its own; every new shape is compiled when it is first met.

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
        capture: bool = True,
        compiled: bool = False,
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
        # Torch gives every calling thread a team of its own, so that runs at once would take the cores from each other;
        # and a CUDA graph has one place for its input.
        self._turn = threading.Lock()
        self._network = inference_network(graph, weights, device, self._dtype)
        forward: Forward = torch.compile(self._network, dynamic=False) if compiled else self._network
        self._forward = ReplayedForward(forward) if device == "cuda" and capture else forward
        self._slow_at_first = device == "cuda" or compiled  # the first run of a shape chooses, records, compiles
        self._met: set[tuple[int, int, int]] = set()

    @property
    def version(self) -> str:
        """Version of torch."""
        return str(torch.__version__)

    def run(self, images: Array) -> list[Array]:
        """Raw maps of the heads, float32; see :class:`~scaledyolo.engines.base.Engine`."""
        check_images(images, channels=self._channels, stride=self._stride)
        with self._turn, torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device, self._dtype).contiguous(memory_format=torch.channels_last)
            maps = self._forward(batch)
            return [raw.to("cpu", torch.float32).contiguous().numpy() for raw in maps]

    def prepare(self, count: int, height: int, width: int) -> None:
        """Run a shape once where that is slow; see :class:`~scaledyolo.engines.base.CompiledForShape`."""
        shape = (count, height, width)
        if self._slow_at_first and shape not in self._met:
            self.run(np.zeros((count, self._channels, height, width), np.float32))
            self._met.add(shape)


class ReplayedForward:
    """A forward pass recorded as a CUDA graph for each shape: one launch in place of hundreds.

    A recording whose replay differs from the plain pass, or that cannot be made, is dropped for the plain pass;
    ``refused`` says why. It is made with other values than it is tried with, so that a replay which ignores what it is
    given does not pass. What a call returns is overwritten by the next call of the same shape.

    Args:
        forward: from images on a GPU to tensors; it must not depend on their values.
        record: from the forward pass and an example to its replay; for tests.
        agrees: whether the replay is right, from images and what it gave for them; by default where no value differs
            from the plain pass by more than two hundredths of the largest.
    """

    def __init__(
        self,
        forward: Forward,
        record: Callable[[Forward, Tensor], Forward] | None = None,
        agrees: Callable[[Tensor, Sequence[Tensor]], bool] | None = None,
    ) -> None:
        self._plain = forward
        self._record = record or record_cuda_graph
        self._agrees = agrees or (lambda images, found: maps_agree(found, self._plain(images)))
        self._recorded: OrderedDict[tuple[int, ...], Forward] = OrderedDict()
        self.refused: dict[tuple[int, ...], str] = {}  # shapes that run plainly, and why

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """What the plain pass gives."""
        shape = tuple(images.shape)
        if shape not in self._recorded:
            with choosing_algorithms():
                self._recorded[shape] = self._faithful(images)
            while len(self._recorded) > MAX_GRAPHS:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(shape)
        return self._recorded[shape](images)

    def _faithful(self, images: Tensor) -> Forward:
        shape = tuple(images.shape)
        try:
            replay = self._record(self._plain, torch.zeros_like(images))
            found = [raw.clone() for raw in replay(images)]
        except RuntimeError as error:  # of CUDA: out of memory, or something in the pass that cannot be recorded
            self.refused[shape] = str(error).partition("\n")[0]
            return self._plain
        if self._agrees(images, found):
            self.refused.pop(shape, None)
            return replay
        self.refused[shape] = "the replay differs from the plain pass"
        return self._plain


def maps_agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether maps differ by no more than other algorithms of the same precision may; NaN is never right."""
    for one, other in zip(found, expected, strict=True):
        error = (one.float() - other.float()).abs().max()
        if not bool(error <= _GRAPH_TOLERANCE * other.float().abs().max()):
            return False
    return True


def record_cuda_graph(forward: Forward, images: Tensor) -> Forward:
    """A replay of ``forward`` for images of this shape, on their device and in their memory format."""
    with torch.cuda.device(images.device):
        place = images.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is chosen or allocated at first must not become part of the recording
            for _ in range(_WARM_UPS):
                forward(place)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # On a stream of this device: torch's own for recordings is one of the device that it first recorded on. What
        # other threads ask of the device meanwhile, memory for the next batch say, must not spoil the recording.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            outputs = forward(place)

    def replay(batch: Tensor) -> Sequence[Tensor]:
        place.copy_(batch)
        graph.replay()
        return outputs

    return replay


@contextmanager
def choosing_algorithms() -> Iterator[None]:
    """Within, cuDNN times its algorithms for each new shape, which pays where a shape comes again and again.

    The plain pass has to be compared within, too: in bfloat16 another algorithm for each of hundreds of convolutions
    makes a difference that looks like a wrong replay.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
