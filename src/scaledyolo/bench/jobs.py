"""What a process of a benchmark is asked to do: plain data that travels to it as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Final, TypeAlias

from scaledyolo.strict import from_mapping


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """Run a network in one of our engines; with an image, everything from its file to the detections."""

    model: tuple[str, ...]  # one path, or cfg and weights
    engine: str
    device: str
    precision: str  # float32, bfloat16, float16, int8, or auto: what a detector chooses
    height: int  # pixels of the network input
    width: int
    batch: int
    threads: int | None  # of a CPU
    image: str | None = None  # path of a picture: measure end to end
    candidates: int | None = None  # boxes of the picture that pass the threshold; None: a threshold of 0.25


@dataclass(frozen=True, slots=True)
class OpenCvJob:
    """Run a network in OpenCV's DNN module: files of Darknet, or one of ONNX."""

    files: tuple[str, ...]
    height: int
    width: int
    batch: int
    threads: int


@dataclass(frozen=True, slots=True)
class GemmJob:
    """Multiply two square matrices: what the machine can do at most."""

    library: str  # numpy, openvino, torch
    device: str
    precision: str
    threads: int


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Copy memory: what the machine can move at most."""

    threads: int


@dataclass(frozen=True, slots=True)
class ProfileJob:
    """Time every kernel that an engine makes of a network."""

    network: NetworkJob
    rounds: int


Job: TypeAlias = NetworkJob | OpenCvJob | GemmJob | CopyJob | ProfileJob

_KINDS: Final[dict[str, type[Job]]] = {
    "network": NetworkJob,
    "opencv": OpenCvJob,
    "gemm": GemmJob,
    "copy": CopyJob,
    "profile": ProfileJob,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def write_job(job: Job) -> str:
    """One line of JSON."""
    return json.dumps({"kind": _NAMES[type(job)], "job": dataclasses.asdict(job)})


def read_job(line: str) -> Job:
    """What :func:`write_job` wrote."""
    document = json.loads(line)
    return from_mapping(_KINDS[document["kind"]], document["job"], "job")
