"""Detection that stays on a GPU: uint8 images go in, rows of detections come out, and nothing is read back in between.

Letterboxing, normalisation, network, decoding and suppression are torch operations of fixed shapes, so that the calls
of many batches queue up on the device while the next images are being read. Written without a GPU at hand, and never
run on one: the tests run it on CPU tensors, where it finds what a ``Detector`` finds, and on tensors without values,
which any question about a value would break.

    detect = DeviceDetector(checkpoint, device="cuda")
    rows, counts = detect(images)      # images: torch.uint8 (batch, height, width, 3) RGB, of one size
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scaledyolo.checkpoint import Checkpoint
from scaledyolo.data.letterbox import BORDER_GREY, Placement, place_letterbox
from scaledyolo.engines.torch import Forward, ReplayedForward, inference_network
from scaledyolo.errors import UsageError
from scaledyolo.postprocess.fixed import FixedPostprocess
from scaledyolo.postprocess.nms import NMS


class DeviceDetector:
    """A trained model on a device of torch. One thread at a time may call it.

    Args:
        model: the checkpoint.
        device: any device of torch: "cuda", "cuda:1", "cpu".
        half: whether the network computes in float16; decoding is float32 always. By default on a GPU.
        size: height and width of the network input in pixels; by default the model's own.
        confidence: 0 to 1; a detection's score is strictly greater.
        nms: greedy suppression; by default as ``Detector`` has it.
        capture: whether the network is recorded as a CUDA graph, on a GPU.

    Raises:
        CheckpointError: the weights are not those of the graph.
        SpecError: the size does not fit the network.
        UsageError: another kind of suppression than greedy.
    """

    def __init__(
        self,
        model: Checkpoint,
        *,
        device: str = "cuda",
        half: bool | None = None,
        size: tuple[int, int] | None = None,
        confidence: float = 0.25,
        nms: NMS | None = None,
        capture: bool = True,
    ) -> None:
        graph = model.graph
        self.height, self.width = size or (graph.height, graph.width)
        graph.check_size(self.height, self.width)
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self._dtype = torch.float16 if (on_gpu if half is None else half) else torch.float32
        self._letterbox = graph.resize == "letterbox"
        forward: Forward = inference_network(graph, dict(model.weights), device, self._dtype)
        self._forward = ReplayedForward(forward) if on_gpu and capture else forward
        shapes = [
            (1, len(detect.mask) * detect.num_outputs, self.height // stride, self.width // stride)
            for detect, stride in zip(graph.detects, graph.strides, strict=True)
        ]
        maps = [torch.empty(shape, device=self.device) for shape in shapes]
        self._process = FixedPostprocess(maps, graph.detects, (self.height, self.width), confidence, nms)

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
        placement = self._placement(images.shape[1], images.shape[2])
        planes = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        batch = canvas_on_device(planes, placement).to(self._dtype).contiguous(memory_format=torch.channels_last)
        rows, counts = self._process(self._forward(batch))
        return undo_on_device(rows, counts, placement), counts

    def _placement(self, height: int, width: int) -> Placement:
        if self._letterbox:
            return place_letterbox(height, width, self.height, self.width)
        return Placement(self.width / width, self.height / height, 0, 0, height, width, self.height, self.width)


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
