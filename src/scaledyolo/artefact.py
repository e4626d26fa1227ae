"""What an exported file says about itself: everything a detector needs besides the network.

An artefact is a network in the format of some runtime. Its metadata, texts by key, holds JSON:

``format``        ``scaledyolo-artefact/1``
``name``          of the network
``class_names``   by contiguous class id; ``category_ids`` those of the original data set, or null
``input``         height, width, channels, how an image is brought to that size, colour order, range of values
``dynamic``       whether height and width are free; ``batch``: images at a time, null for any number
``heads``         how each raw map becomes boxes: the fields of :class:`~scaledyolo.arch.ops.Detect`; ``strides``
``max_stride``    what height and width are multiples of; missing where it is the stride of the coarsest head
``nms``           of an end-to-end graph: what it was built with; null where the outputs are raw maps
``storage``       how weights are stored, ``float32`` or ``float16``; those in 8 bits aside
``quantisation``  how the network came to compute in 8 bits; null or missing where it does not
``provenance``    where the weights come from
``verification``  ``pending``, ``verified`` or ``UNVERIFIED`` (it was compared and differs)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from scaledyolo.arch.graph import Resize
from scaledyolo.arch.ops import Detect
from scaledyolo.checkpoint import Description
from scaledyolo.errors import FormatError, SpecError
from scaledyolo.strict import from_mapping, parse_json

FORMAT: Final = "scaledyolo-artefact/1"

Verification = Literal["pending", "verified", "UNVERIFIED"]
Storage = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True)
class EmbeddedNms:
    """Suppression inside an end-to-end graph: greedy, per class unless ``class_agnostic``."""

    confidence: float = 0.25  # a score must be greater
    iou: float = 0.45  # a greater overlap suppresses
    max_detections: int = 300  # rows of the output
    class_agnostic: bool = False


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a network came to compute in 8 bits.

    Its last convolutions and what follows them always stay in float, for OpenVINO depthwise ones too.
    """

    precision: Literal["int8"] = "int8"
    tool: str = ""  # what quantised it, with version
    calibrated_on: str = ""  # name of the data set or folder whose images gave the ranges of activations
    images: int = 0  # how many
    float_layers: tuple[str, ...] = ()  # further convolutions that were returned to float
    int8_share: float = 1.0  # of the multiply-accumulates of all convolutions
    max_ap_drop: float | None = None  # points of AP that it may lose; None where that was not measured
    full_ap_drop: float | None = None  # points of AP lost before any of the float_layers returned to float
    trained_for: bool = False  # whether the network was trained to compute in 8 bits
    speedup: float | None = None  # over float32 in the same runtime, where that was measured


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What one has to know about a network to detect with it; sizes in pixels of the network input."""

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    height: int
    width: int
    channels: int
    resize: Resize
    detects: tuple[Detect, ...]
    strides: tuple[int, ...]
    # What sides are multiples of; 0: the coarsest head's stride. A subnet without heads keeps the strides above them.
    max_stride: int = 0
    dynamic: bool = True
    batch: int | None = None
    nms: EmbeddedNms | None = None
    storage: Storage = "float32"
    quantisation: Quantisation | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    verification: Verification = "pending"

    def __post_init__(self) -> None:
        if not self.max_stride:
            object.__setattr__(self, "max_stride", max(self.strides, default=1))

    @classmethod
    def of(cls, description: Description) -> ModelFacts:
        """Those of a model that is not exported: any batch, any size."""
        graph = description.graph
        return cls(
            name=graph.name,
            class_names=description.class_names,
            category_ids=description.category_ids,
            height=graph.height,
            width=graph.width,
            channels=graph.channels,
            resize=graph.resize,
            detects=graph.detects,
            strides=graph.strides,
            max_stride=graph.max_stride,
            provenance=dict(description.provenance),
        )

    def check_size(self, height: int, width: int) -> None:
        """Refuse an input size that the network cannot take.

        Raises:
            SpecError: the size is fixed and another, or not a multiple of the largest stride.
        """
        if not self.dynamic and (height, width) != (self.height, self.width):
            raise SpecError(
                f"{self.name}: exported for {self.height}x{self.width} only, not {height}x{width}; "
                "export it with --dynamic or for that size"
            )
        stride = self.max_stride
        for side, value in (("height", height), ("width", width)):
            if value < stride or value % stride:
                below = max(value // stride, 1) * stride
                near = f"{below} or {below + stride}" if value > stride else f"{stride}"
                raise SpecError(
                    f"{self.name}: {side} {value} is not a multiple of the largest stride {stride}; use {near}"
                )

    def to_metadata(self) -> dict[str, str]:
        """Texts by key, as files carry them."""
        heads = [
            {item.name: getattr(detect, item.name) for item in dataclasses.fields(Detect)} for detect in self.detects
        ]
        values = {
            "name": self.name,
            "class_names": self.class_names,
            "category_ids": self.category_ids,
            "input": {
                "height": self.height,
                "width": self.width,
                "channels": self.channels,
                "resize": self.resize,
                "colour": "RGB",
                "range": [0, 1],
            },
            "dynamic": self.dynamic,
            "batch": self.batch,
            "heads": heads,
            "strides": self.strides,
            "max_stride": self.max_stride,
            "nms": None if self.nms is None else dataclasses.asdict(self.nms),
            "storage": self.storage,
            "quantisation": None if self.quantisation is None else dataclasses.asdict(self.quantisation),
            "provenance": dict(self.provenance),
            "verification": self.verification,
        }
        return {"format": FORMAT} | {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> ModelFacts:
        """Read :meth:`to_metadata` back; ``where`` opens error messages.

        Raises:
            FormatError: not written by this package, or damaged.
        """
        if metadata.get("format") != FORMAT:
            raise FormatError(
                f"{where}: its metadata does not say how its outputs become boxes; "
                "export the model with `scaledyolo export`"
            )
        try:
            return _facts({key: parse_json(value) for key, value in metadata.items() if key in _KEYS}, where)
        except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, SpecError) as error:
            raise FormatError(f"{where}: its metadata is damaged ({error!r})") from None


_KEYS: Final = frozenset(
    (
        "name", "class_names", "category_ids", "input", "dynamic", "batch", "heads", "strides", "max_stride",
        "nms", "storage", "quantisation", "provenance", "verification",
    )
)  # fmt: skip


def _facts(values: Mapping[str, Any], where: str) -> ModelFacts:
    size, heads = values["input"], values["heads"]
    known = {
        **{key: values[key] for key in ("name", "class_names", "category_ids", "strides", "dynamic", "batch", "nms")},
        **{key: size[key] for key in ("height", "width", "channels", "resize")},
        "detects": [from_mapping(Detect, head, f"{where}: head {row}", SpecError) for row, head in enumerate(heads)],
        "storage": values["storage"],
        "quantisation": values.get("quantisation"),
        "max_stride": values.get("max_stride", 0),
        "verification": values["verification"],
    }
    provenance = {str(key): str(value) for key, value in values["provenance"].items()}
    facts = dataclasses.replace(from_mapping(ModelFacts, known, where, SpecError), provenance=provenance)
    _check(facts)
    return facts


def _check(facts: ModelFacts) -> None:
    """Raise ValueError or SpecError where values contradict each other, or could not be those of any network."""
    positive = (facts.height, facts.width, facts.channels, facts.max_stride, *facts.strides, facts.batch or 1)
    if min(positive) < 1 or facts.batch == 0:
        raise ValueError("a size, stride or batch is not positive")
    if not facts.detects or len(facts.strides) != len(facts.detects):
        raise ValueError(f"{len(facts.strides)} strides for {len(facts.detects)} heads")
    for detect in facts.detects:
        detect.out_channels(len(detect.mask) * detect.num_outputs)  # refuses a mask that points outside the anchors
    if any(detect.num_classes != len(facts.class_names) for detect in facts.detects):
        raise ValueError(f"{len(facts.class_names)} class names for heads of {facts.detects[0].num_classes} classes")
