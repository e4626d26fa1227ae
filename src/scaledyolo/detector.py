"""Story 1: an image becomes detections. Letterbox, engine, decode, suppress, undo the letterbox.

With test-time augmentation or an ensemble there are several views of the letterboxed image (:mod:`scaledyolo.views`);
the engine and decode take each, and suppress merges what they found.
"""

from __future__ import annotations

import copy
import operator
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from scaledyolo.data.letterbox import letterbox, stretch
from scaledyolo.data.placement import Placement
from scaledyolo.default_model import DEFAULT
from scaledyolo.errors import UsageError, nearest
from scaledyolo.postprocess import NMS, Candidates, Merge, merge_views
from scaledyolo.postprocess.fusion import check_merge
from scaledyolo.runnable import ModelSource, Runnable, open_runnable, rows_as_candidates
from scaledyolo.views import inputs_of, prepare_views, views_of

if TYPE_CHECKING:
    import supervision as sv
    from PIL import Image

    from scaledyolo.budgeted import Budgeted
    from scaledyolo.sources import Frame, FrameSource, Mode

RgbImage = npt.NDArray[np.uint8]

STAGES = ("resize", "network", "decode", "suppress")
LANES_FOR_EACH_CORE: Final = 2  # while one lane waits for the other, or for Python, the core has a second to go on with
MAX_LANES: Final = 32  # images in work at once; beyond, memory costs more than threads gain


@dataclass
class StageTimes:
    """Seconds spent in each stage and images that went through, summed over all calls of a detector.

    What an engine does once for a shape of images (:meth:`Detector.prepare`) is part of no stage.
    """

    images: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def milliseconds_per_image(self) -> Mapping[str, float]:
        """Mean of each stage."""
        return {stage: 1e3 * value / max(self.images, 1) for stage, value in self.seconds.items()}


class Detector:
    """Finds objects in images with a trained model.

    >>> detector = Detector("yolov4-tiny.safetensors")          # doctest: +SKIP
    >>> detections = detector("street.jpg")                     # doctest: +SKIP

    Safe to call from several threads at once.

    Args:
        model: a checkpoint (path or loaded), a Darknet pair ``("x.cfg", "x.weights")``, the name of official weights
            in the cache, or an exported model: an .onnx, .tflite or .mlpackage, an OpenVINO or ncnn folder; by default
            the model that comes with the package.
        confidence: lowest score, objectness times class probability, 0 to 1.
        iou: overlap above which the weaker of two boxes of one class is dropped.
        nms: the whole suppression, in place of ``iou``, ``agnostic`` and ``max_detections``.
        size: side, or (height, width), of the network input in pixels; by default the model's own.
        resize: "letterbox" keeps the aspect, "stretch" does not; by default as the model was trained.
        classes: names or ids of the classes to report; by default all.
        agnostic: whether boxes of different classes suppress each other.
        max_detections: most boxes reported for an image.
        multi_label: whether a box counts once for every class above ``confidence`` (evaluation).
        engine: "auto" (the fastest that is installed), "openvino", "onnxruntime" or "torch".
        device: "auto", "cpu", "cuda", or Intel's "gpu" and "npu".
        half: whether the network computes in half precision (bfloat16 on a CPU). None: where that is faster and was
            measured to be faithful to this network (:mod:`scaledyolo.engines.faithful`), once, when it is first opened
            on a machine; boxes then move by fractions of a pixel. False: float32, to compare with other programs.
        threads: threads of the engine on a CPU; by default all cores.
        names: class names or a file with one a line; by default those in the checkpoint or beside the cfg.
        download: whether official weights that are not in the cache may be fetched.
        subnet: only this part of ``model``, such as "without-head-p7" or "without-stage-p7" (:mod:`.subnet`).
        budget: time for an image, such as "15ms" or "30fps". Of the sizes up to ``size`` and of the network's exact or
            trained subnets (of all with subnet="all") the best that fits is chosen by measuring, once for a machine,
            and changed when the machine slows or recovers (:mod:`scaledyolo.budgeted`).
        tta: test-time augmentation: whether each network looks three times, once mirrored and twice shrunk, for two to
            three times the cost.
        ensemble: further models of the same classes; they are shown what ``model`` is shown, at its size.
        merge: how the views of an image become one answer: "nms" suppresses them together, "wbf" fuses their boxes.

    Raises:
        ScaledYoloError: the model cannot be read, or an option does not fit it; one sentence.
    """

    def __init__(  # noqa: PLR0913 - the options of the product, all by name
        self,
        model: ModelSource = DEFAULT,
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        nms: NMS | None = None,
        size: int | tuple[int, int] | None = None,
        resize: Literal["letterbox", "stretch"] | None = None,
        classes: Sequence[int | str] | None = None,
        agnostic: bool = False,
        max_detections: int = 300,
        multi_label: bool = False,
        engine: str = "auto",
        device: str = "auto",
        half: bool | None = None,
        threads: int | None = None,
        names: str | os.PathLike[str] | Sequence[str] | None = None,
        download: bool = False,
        subnet: str | None = None,
        budget: str | float | None = None,
        tta: bool = False,
        ensemble: Sequence[ModelSource] = (),
        merge: Merge = "nms",
    ) -> None:
        if not 0 <= confidence <= 1:
            raise UsageError(f"confidence must lie between 0 and 1, got {confidence}")
        if resize not in (None, "letterbox", "stretch"):
            raise UsageError(f"resize is 'letterbox' or 'stretch', got {resize!r}")
        if isinstance(ensemble, (str, os.PathLike)):
            raise UsageError(
                f"an ensemble is a list of models, got {os.fspath(ensemble)!r}; write [{os.fspath(ensemble)!r}]"
            )
        open_one = partial(open_runnable, engine=engine, device=device, half=half, threads=threads, download=download)
        if budget is not None:
            from scaledyolo.budgeted import budget_model

            model = budget_model(model, subnet, names=names, download=download, several=bool(ensemble))
        self.network = open_one(model, names=names, subnet=subnet if budget is None else None)
        self.engine, facts = self.network.engine, self.network.facts
        self.names = facts.class_names
        self.category_ids = facts.category_ids
        self.height, self.width = (size, size) if isinstance(size, int) else size or (facts.height, facts.width)
        self._networks = (self.network, *(open_one(other) for other in ensemble))
        self._tta = tta
        self.views = views_of(self._networks, self.height, self.width, tta=tta)
        self.threads = threads
        if facts.nms is not None and (confidence < facts.nms.confidence or multi_label):
            raise UsageError(
                f"{facts.name}: suppression is part of this exported network, with one class a box and confidence "
                f"{facts.nms.confidence}; ask for no less, or export it without --nms"
            )
        self.resize = resize or facts.resize
        self.confidence = confidence
        self.nms = nms or NMS(iou=iou, class_agnostic=agnostic, max_detections=max_detections)
        self.merge: Merge = merge
        check_merge(merge, self.nms, len(self.views))
        self.class_ids = None if classes is None else tuple(self._class_id(item) for item in classes)
        self.multi_label = multi_label
        self.times = StageTimes()
        self._lock = threading.Lock()
        self._several: tuple[Runnable, ...] | None = None  # the networks for throughput, once they are asked for
        self._names_array = np.array(self.names)
        array_namespace(self._names_array)  # imports what decoding needs here, not in the time of the first image
        self.budget: Budgeted | None = None
        if budget is not None:
            from scaledyolo.budgeted import keep_budget

            self.budget = keep_budget(self, budget, model, subnet, open_one, threads=threads)
            self.times = StageTimes()  # without the images on which was measured

    def __call__(self, image: Any, *, bgr: bool = False) -> sv.Detections | list[sv.Detections]:
        """Detect objects in one image or in a list of images.

        Args:
            image: a path, an array (height, width, 3) uint8, or a Pillow image; or a list of such.
            bgr: whether arrays hold blue, green, red, as OpenCV reads them, instead of red, green, blue.

        Returns:
            ``supervision.Detections``: ``xyxy`` float32 in pixels of the image, ``confidence``, ``class_id`` from 0,
            ``data["class_name"]``; a list of them for a list.

        Raises:
            SourceError: a file cannot be read as an image.
            UsageError: an array is not uint8 with three channels.
        """
        if isinstance(image, (list, tuple)):
            return self.detect_batch([as_rgb(item, bgr=bgr) for item in image])
        return self.detect_batch([as_rgb(image, bgr=bgr)])[0]

    def detect_batch(self, images: Sequence[RgbImage]) -> list[sv.Detections]:
        """Detections of each image (height, width, 3) uint8 RGB; all of them go through the network together."""
        found = self.candidates(images)
        return [self.as_detections(candidates) for candidates in found]

    def candidates(self, images: Sequence[RgbImage]) -> list[Candidates]:
        """Like :meth:`detect_batch`, as plain arrays: boxes in pixels of each image."""
        if not images:
            return []
        if self.budget is not None:
            return self.budget.candidates(images)
        self._prepare(len(images))
        clock = [time.perf_counter()]
        placed = [self._place(image) for image in images]
        inputs = inputs_of(self.views, [canvas for canvas, _ in placed])
        clock.append(time.perf_counter())
        outputs = [view.run(batch) for view, batch in zip(self.views, inputs, strict=True)]
        clock.append(time.perf_counter())
        candidates = self._decode(outputs)
        clock.append(time.perf_counter())
        kept = [merge_views(found, self.nms, self.merge, self.confidence) for found in candidates]
        result = [_in_image(found, placement) for found, (_, placement) in zip(kept, placed, strict=True)]
        clock.append(time.perf_counter())
        self._count(len(images), clock)
        return result

    def prepare(self, batch: int = 1, *, throughput: bool = False) -> None:
        """Have the engine ready for ``batch`` images at once, so that the first ones take no longer than others.

        Compiling a network takes seconds when it is first met on a machine. Where this is not called, the first call
        with so many images does it; its time counts in no stage of :attr:`times`.

        Args:
            batch: images at once.
            throughput: whether several such batches will be in work at once, see :meth:`for_throughput`.
        """
        if self.budget is None:  # else all that may run was measured, and so has run
            (self.for_throughput() if throughput else self)._prepare(batch)

    def _prepare(self, batch: int) -> None:
        prepare_views(self._networks, self.height, self.width, batch, tta=self._tta)

    def stream(
        self, source: Any, *, batch: int = 1, mode: Mode = "auto", **options: Any
    ) -> Iterator[tuple[Frame, sv.Detections]]:
        """Detect in every frame of a file, folder, glob, video, camera or stream, as it comes.

        Args:
            source: anything that :func:`scaledyolo.sources.open_source` opens.
            batch: frames that go through the network at once.
            mode: "latency": one frame after the other, each with all cores; "throughput": several at once, each on its
                share of them; "auto": throughput for folders, lists and video files, latency for the rest.
            options: passed to ``open_source``.

        Yields:
            (frame, detections) in order; frames that could not be read are left out (:meth:`watch` shows them).
        """
        from scaledyolo.sources import open_source

        for frame, found in self.watch(open_source(source, **options), batch=batch, mode=mode):
            if found is not None:
                yield frame, found

    def watch(
        self,
        source: FrameSource,
        *,
        batch: int = 1,
        mode: Mode = "auto",
        detect: Callable[[Detector, list[RgbImage]], list[sv.Detections]] | None = None,
    ) -> Generator[tuple[Frame, sv.Detections | None], None, None]:
        """Like :meth:`stream` for a source that is open; a frame with an error comes with None.

        Args:
            source: where the frames come from; it is left open.
            batch: see :meth:`stream`, as for ``mode``.
            detect: what to do with images, given the detector for the mode; by default :meth:`detect_batch`.
        """
        from scaledyolo.sources import frames_with_results

        throughput = self.several_at_once(source, mode)
        detector = self.for_throughput() if throughput else self
        look = partial(detect or Detector.detect_batch, detector)
        return frames_with_results(source, look, batch=batch, lanes=detector.lanes if throughput else 0)

    def several_at_once(self, source: FrameSource, mode: Mode = "auto") -> bool:
        """Whether :meth:`watch` will have several batches of this source in work at once.

        Raises:
            UsageError: that is asked for, and a budget.
        """
        from scaledyolo.sources import settle_mode

        if self.budget is not None and mode == "throughput":
            raise UsageError('a budget is time for one image, so it needs all cores for it; use mode "latency"')
        return self.budget is None and settle_mode(mode, source.kind) == "throughput"

    def looking_with(self, network: Runnable, height: int, width: int) -> Detector:
        """This detector with another network of the same classes and input size; it counts its times with this one."""
        other = copy.copy(self)
        other.network, other.engine, other.height, other.width = network, network.engine, height, width
        other._networks, other._several, other.budget = (network,), None, None
        other.views = views_of(other._networks, height, width, tta=self._tta)
        return other

    def for_throughput(self) -> Detector:
        """The same detector for calls from several threads, which share out the cores instead of taking turns."""
        with self._lock:
            if self._several is None:
                self._several = tuple(network.side_by_side() for network in self._networks)
        other = copy.copy(self)  # the settings, and the times, which both add to
        other.network, other.engine, other._networks = self._several[0], self._several[0].engine, self._several
        other.views = views_of(self._several, self.height, self.width, tta=self._tta)
        return other

    @property
    def lanes(self) -> int:
        """Threads from which to call a detector :meth:`for_throughput`."""
        from scaledyolo.host import usable_cores

        return min(LANES_FOR_EACH_CORE * (self.threads or usable_cores()), MAX_LANES)

    def _decode(self, outputs: Sequence[Sequence[npt.NDArray[Any]]]) -> list[tuple[Candidates, ...]]:
        """For each image the candidates of each view, from the outputs of each view."""
        if self.network.facts.nms is not None:
            return [(found,) for found in rows_as_candidates(outputs[0], self.confidence, self.class_ids)]
        found_by_view = (
            view.decode(maps, self.confidence, self.multi_label, self.class_ids)
            for view, maps in zip(self.views, outputs, strict=True)
        )
        return list(zip(*found_by_view, strict=True))

    def _place(self, image: RgbImage) -> tuple[RgbImage, Placement]:
        place = letterbox if self.resize == "letterbox" else stretch
        return place(image, self.height, self.width)

    def _count(self, images: int, clock: Sequence[float]) -> None:
        with self._lock:
            self.times.images += images
            for stage, start, end in zip(STAGES, clock[:-1], clock[1:], strict=True):
                self.times.seconds[stage] += end - start

    def as_detections(self, found: Candidates) -> sv.Detections:
        """What :meth:`candidates` gave for one image in supervision's type, with the names of the classes."""
        import supervision as sv

        return sv.Detections(
            xyxy=found.boxes_xyxy,
            confidence=found.scores,
            class_id=found.class_ids,
            data={"class_name": self._names_array[found.class_ids]},
        )

    def _class_id(self, item: int | str) -> int:
        if isinstance(item, str) and item in self.names:
            return self.names.index(item)
        try:
            number = int(item) if isinstance(item, str) else operator.index(item)
        except ValueError:
            raise UsageError(f"there is no class named {item!r}.{nearest(str(item), self.names)}") from None
        except TypeError:
            raise UsageError(f"a class is a name or a whole number, got {item!r}") from None
        if not 0 <= number < len(self.names):
            raise UsageError(f"there is no class {item}; this model has classes 0 to {len(self.names) - 1}")
        return number


def as_rgb(image: Any, *, bgr: bool = False) -> RgbImage:
    """An image (height, width, 3) uint8 RGB from a path, an array or a Pillow image.

    Raises:
        SourceError: the file cannot be read as an image, or a Pillow image holds no colours.
        UsageError: the array is not uint8 with three channels.
    """
    if isinstance(image, (str, os.PathLike)):
        from scaledyolo.sources import read_image

        return read_image(image)
    if not isinstance(image, np.ndarray):
        return _from_pillow(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UsageError(f"an image array is uint8 of shape (height, width, 3), got {image.dtype} {image.shape}")
    return np.ascontiguousarray(image[..., ::-1]) if bgr else image


def _from_pillow(image: Image.Image) -> RgbImage:
    from PIL import Image

    from scaledyolo.sources import rgb_of_pillow

    if not isinstance(image, Image.Image):
        raise UsageError(f"an image is a path, an array or a Pillow image, got {type(image).__name__}")
    return rgb_of_pillow(image)


def _in_image(found: Candidates, placement: Placement) -> Candidates:
    boxes = placement.undo(np.asarray(found.boxes_xyxy)).astype(np.float32)
    return replace(found, boxes_xyxy=boxes)
