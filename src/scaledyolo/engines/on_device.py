"""Detection that stays on a GPU: uint8 images go in, rows of detections come out, and nothing is read back in between.

Letterboxing, normalisation, network, decoding and suppression are torch operations of fixed shapes, recorded together
as one CUDA graph for each shape of images, so that a batch is one launch and many batches queue up on the device while
the next images are being read. Written without a GPU at hand, and never run on one: the tests run it on CPU tensors,
where it finds what a ``Detector`` finds, and on tensors without values, which any question about a value would break.

    detect = DeviceDetector(checkpoint, device="cuda")
    rows, counts = detect(images)      # images: torch.uint8 (batch, height, width, 3) RGB, of one size
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from scaledyolo.checkpoint import Checkpoint
from scaledyolo.data.placement import BORDER_GREY, Placement, place_letterbox, place_stretch
from scaledyolo.engines.base import choose
from scaledyolo.engines.torch import Forward, ReplayedForward, inference_network, maps_agree
from scaledyolo.errors import UsageError
from scaledyolo.postprocess.fixed import SLOTS, FixedPostprocess, Greedy, greedy_by_rank
from scaledyolo.postprocess.nms import NMS

PRECISIONS: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class DeviceDetector:
    """A trained model on a device of torch. One thread at a time may call it.

    Args:
        model: the checkpoint.
        device: any device of torch: "cuda", "cuda:1", "cpu".
        precision: what the network computes in, a key of :data:`PRECISIONS`; decoding is float32 always. By default
            float16 on a GPU and float32 elsewhere.
        size: height and width of the network input in pixels; by default the model's own.
        confidence: 0 to 1; a detection's score is strictly greater.
        nms: greedy suppression; by default as ``Detector`` has it.
        capture: whether all of it is recorded as a CUDA graph for each shape of images, on a GPU.
        compiled: let ``torch.compile`` write kernels for what is between the convolutions; a new shape of images then
            takes up to minutes when it is first met.

    Raises:
        CheckpointError: the weights are not those of the graph.
        SpecError: the size does not fit the network.
        UsageError: another kind of suppression than greedy, or no such precision.
    """

    def __init__(
        self,
        model: Checkpoint,
        *,
        device: str = "cuda",
        precision: str | None = None,
        size: tuple[int, int] | None = None,
        confidence: float = 0.25,
        nms: NMS | None = None,
        capture: bool = True,
        compiled: bool = False,
    ) -> None:
        graph = model.graph
        self.height, self.width = size or (graph.height, graph.width)
        graph.check_size(self.height, self.width)
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.precision = precision or ("float16" if on_gpu else "float32")
        choose("precision", self.precision, tuple(PRECISIONS))
        self.dtype = PRECISIONS[self.precision]
        self._place = place_letterbox if graph.resize == "letterbox" else place_stretch
        self.plain_network = inference_network(graph, dict(model.weights), device, self.dtype)
        self.network: Forward = torch.compile(self.plain_network, dynamic=False) if compiled else self.plain_network
        shapes = [
            (1, len(detect.mask) * detect.num_outputs, self.height // stride, self.width // stride)
            for detect, stride in zip(graph.detects, graph.strides, strict=True)
        ]
        maps = [torch.empty(shape, device=self.device) for shape in shapes]
        self.by_rank_because: str | None = "it is not on a GPU"  # suppression; None where it is one kernel
        greedy = self._greedy_kernel(nms or NMS()) if on_gpu else None
        self._process = FixedPostprocess(maps, graph.detects, (self.height, self.width), confidence, nms, greedy)
        # Suppression by rank is hundreds of operations, which take a compiler longer than they are worth.
        whole = compiled and greedy is not None
        self._prepare = torch.compile(self._canvas, dynamic=False) if compiled else self._canvas
        self._finish = torch.compile(self._detections, dynamic=False) if whole else self._detections
        self._recorded = ReplayedForward(self._everything, agrees=self._agrees) if on_gpu and capture else None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Detect objects.

        Args:
            images: (batch, height, width, 3) uint8 RGB; best on the device already, or in pinned memory.

        Returns:
            Rows (batch, n, 6) float32: left, top, right, bottom in pixels of the images, score and class id, by
            descending score, then zeros; and their numbers (batch,) int64. Both on the device.

        Raises:
            UsageError: another dtype or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UsageError(
                f"images are uint8 of shape (batch, height, width, 3), got {images.dtype} {tuple(images.shape)}"
            )
        images = images.to(self.device, non_blocking=True)
        if self._recorded is None:
            rows, counts, *_ = self._everything(images)
            return rows, counts
        rows, counts, *_ = self._recorded(images)
        return rows.clone(), counts.clone()  # the next replay writes over them

    def plain_because(self, images: Tensor) -> str | None:
        """Why images of a shape that was met are not detected by replaying a CUDA graph; None where they are."""
        if self._recorded is None:
            return "nothing was to be recorded"
        return self._recorded.refused.get(tuple(images.shape))

    def _everything(self, images: Tensor) -> Sequence[Tensor]:
        """Rows, counts and the maps that they were found in."""
        maps = self.network(self._prepare(images))
        return (*self._finish(maps, images.shape[1], images.shape[2]), *maps)

    def _agrees(self, images: Tensor, found: Sequence[Tensor]) -> bool:
        """Whether maps are those of the network, and rows what is in these maps."""
        rows, counts, *maps = found
        again = self._finish(maps, images.shape[1], images.shape[2])
        same = torch.allclose(rows, again[0], atol=1e-3) and torch.equal(counts, again[1])
        return same and maps_agree(maps, self.network(self._prepare(images)))

    def _canvas(self, images: Tensor) -> Tensor:
        """Input of the network from images (batch, h, w, 3) uint8."""
        placement = self._placement(images.shape[1], images.shape[2])
        canvas = canvas_on_device(images.permute(0, 3, 1, 2), placement)
        return canvas.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _detections(self, maps: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows and counts in images of this size from maps."""
        rows, counts = self._process(maps)
        return undo_on_device(rows, counts, self._placement(height, width)), counts

    def _placement(self, height: int, width: int) -> Placement:
        return self._place(height, width, self.height, self.width)

    def _greedy_kernel(self, nms: NMS) -> Greedy | None:
        """Suppression in one kernel, where it can be had and does what suppression by rank does here."""
        if importlib.util.find_spec("triton") is None:
            self.by_rank_because = "Triton is not installed"
            return None
        from scaledyolo.engines.greedy_triton import MAX_SLOTS, greedy_in_one_kernel

        slots = nms.max_candidates or SLOTS
        if slots > MAX_SLOTS:
            self.by_rank_because = f"{slots} candidates are more than {MAX_SLOTS}"
            return None
        random = torch.Generator().manual_seed(0)
        corners, sides = (100 * torch.rand(2, slots, 2, generator=random) for _ in range(2))
        scores = torch.arange(slots, 0, -1.0).expand(2, slots).clone()
        scores[1, slots // 2 :] = 0
        boxes_xyxy, class_ids = torch.cat((corners, corners + sides), dim=2), torch.arange(slots).expand(2, slots) % 3
        boxes_xyxy, scores, class_ids = (values.to(self.device) for values in (boxes_xyxy, scores, class_ids))
        try:
            by_kernel = greedy_in_one_kernel(boxes_xyxy, scores, class_ids, nms)
            by_rank = greedy_by_rank(boxes_xyxy, scores, class_ids, nms)
            same = torch.equal(by_kernel, by_rank)
        except Exception as error:  # of Triton's compiler, of the one for C that it calls, of the driver
            self.by_rank_because = f"the kernel fails: {type(error).__name__}: {error}".partition("\n")[0]
            return None
        self.by_rank_because = None if same else "the kernel differs from it"
        return greedy_in_one_kernel if same else None


def canvas_on_device(images: Tensor, placement: Placement) -> Tensor:
    """Network input (batch, 3, height, width) float32, 0 to 1, from images (batch, 3, h, w) uint8.

    What :func:`scaledyolo.data.letterbox.letterbox` does on the CPU; where that resizes in fixed point, a value may
    differ by one level of 255.
    """
    pixels = images.float()
    content = (placement.content_height, placement.content_width)
    if tuple(images.shape[2:]) != content:
        pixels = F.interpolate(pixels, size=content, mode="bilinear", align_corners=False).round_()
    margins = (placement.pad_left, placement.pad_right, placement.pad_top, placement.pad_bottom)
    return F.pad(pixels, margins, value=float(BORDER_GREY)).div_(255.0)


def undo_on_device(rows: Tensor, counts: Tensor, placement: Placement) -> Tensor:
    """Rows (batch, n, 6) with their boxes moved from the canvas to the image and clipped to it; empty rows stay 0."""
    x = ((rows[:, :, 0:3:2] - placement.pad_left) / placement.scale_x).clamp(0, placement.source_width)
    y = ((rows[:, :, 1:4:2] - placement.pad_top) / placement.scale_y).clamp(0, placement.source_height)
    moved = torch.stack((x[:, :, 0], y[:, :, 0], x[:, :, 1], y[:, :, 1], rows[:, :, 4], rows[:, :, 5]), dim=2)
    number = torch.arange(rows.shape[1], device=rows.device)
    return torch.where((number < counts[:, None])[:, :, None], moved, torch.zeros_like(moved))
