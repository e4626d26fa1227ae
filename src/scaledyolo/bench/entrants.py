"""Who takes part: from the engines and precisions that a user names to jobs for processes."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaledyolo.bench.jobs import GemmJob, NetworkJob, OpenCvJob
from scaledyolo.bench.networks import Network
from scaledyolo.bench.process import CandidateError, Process, Worker
from scaledyolo.engines.select import AUTO, ENGINES, choose_engine
from scaledyolo.errors import UsageError, nearest
from scaledyolo.runnable import ONNX_SUFFIX, OPENVINO_SUFFIX, network_file

ALL: Final = "all"
OPENCV: Final = "opencv"
DARKNET: Final = "darknet"
# Boxes that pass the threshold in a busy picture. Random weights find any number, so the threshold is put there.
_USUAL_CANDIDATES: Final = 100
KNOWN_ENGINES: Final = (ALL, AUTO, *ENGINES, OPENCV)
_ALL_ENGINES: Final = ("openvino", "onnxruntime", "torch", OPENCV)
# Who reads an exported file; of another kind each has one runtime, which `auto` finds.
_TAKERS: Final = {ONNX_SUFFIX: ("openvino", "onnxruntime", OPENCV), OPENVINO_SUFFIX: ("openvino",)}
DEVICES: Final = ("cpu", "cuda", "gpu", "npu")
# As a user may write them: as our engines call them, or as OpenVINO and Darknet's descendants do.
PRECISIONS: Final = {
    "float32": "float32",
    "f32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "f16": "float16",
    "fp16": "float16",
    "int8": "int8",
    "i8": "int8",
}


@dataclass(frozen=True)
class Setting:
    """A network at one size and batch, and what else holds for all who run it."""

    network: Network
    height: int  # pixels of the network input
    width: int
    batch: int
    threads: int
    device: str
    image: Path  # a picture for those who start from a file
    folder: Path  # for files that rivals need; may not exist yet


@dataclass(frozen=True)
class Entrant:
    """One way to run a network, not yet started."""

    setting: Setting
    engine: str
    precision: str
    end_to_end: bool
    start: Callable[[], Process]  # raises ScaledYoloError


def check_engines(engines: Sequence[str], device: str) -> None:
    """Refuse engines and devices that do not exist.

    Raises:
        UsageError: names the nearest that does.
    """
    for engine in engines:
        if engine not in KNOWN_ENGINES:
            known = ", ".join(KNOWN_ENGINES)
            hint = " Give its binary with --rival-darknet." if engine == DARKNET else nearest(engine, KNOWN_ENGINES)
            raise UsageError(f"there is no engine {engine!r}; known are {known}.{hint}")
    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}; known are {', '.join(DEVICES)}.{nearest(device, DEVICES)}")


def read_precisions(words: Sequence[str]) -> tuple[str, ...]:
    """Precisions as our engines call them.

    Raises:
        UsageError: one that does not exist; names the nearest.
    """
    for word in words:
        if word.lower() not in PRECISIONS:
            known = "f32, bf16, f16, int8"
            raise UsageError(f"there is no precision {word!r}; known are {known}.{nearest(word, PRECISIONS)}")
    return tuple(dict.fromkeys(PRECISIONS[word.lower()] for word in words))


def entrants(
    setting: Setting, engines: Sequence[str], precisions: Sequence[str], *, end_to_end: bool, darknet: str | None
) -> list[Entrant]:
    """Everybody who runs one network at one size and batch.

    Args:
        setting: what holds for all of them.
        engines: names; ``all`` is what is installed and can take this network, ``auto`` what a detector chooses, its
            precision too.
        precisions: of our engines; none means all that each computes natively. Rivals compute in float32.
        end_to_end: whether our engines also run from an image file to detections.
        darknet: a binary that takes part as well.
    """
    found: dict[tuple[str, str, bool], Entrant] = {}
    for engine in itertools.chain.from_iterable(_installed_for(setting) if one == ALL else [one] for one in engines):
        if engine == OPENCV:
            found[OPENCV, "float32", False] = Entrant(setting, OPENCV, "float32", False, lambda: _start_opencv(setting))
            continue
        for precision in precisions or ((AUTO,) if engine == AUTO else _native_precisions(engine, setting)):
            for whole in (False, True) if end_to_end else (False,):
                start = _starter(setting, engine, precision, whole)
                found[engine, precision, whole] = Entrant(setting, engine, precision, whole, start)
    if darknet is not None:
        found[DARKNET, "float32", False] = Entrant(
            setting, DARKNET, "float32", False, lambda: _start_darknet(setting, darknet)
        )
    return list(found.values())


def _installed_for(setting: Setting) -> list[str]:
    """What is installed and can take this network on this device, the fastest as a rule first."""
    if setting.device != "cpu":
        return [choose_engine(AUTO, setting.device, None).engine]
    network = setting.network
    takers = _ALL_ENGINES if network.graph is not None else _TAKERS.get(_suffix(network), (AUTO,))
    return [name for name in takers if name in (AUTO, OPENCV) or importlib.util.find_spec(name) is not None]


def _suffix(network: Network) -> str:
    """Of an exported network: what its runtime reads."""
    return network_file(Path(network.files[0])).suffix.lower()


def _native_precisions(engine: str, setting: Setting) -> tuple[str, ...]:
    if setting.network.precision is not None:
        return (setting.network.precision,)
    if engine == "openvino" and setting.device == "cpu" and importlib.util.find_spec("openvino") is not None:
        from scaledyolo.engines.openvino import available_precisions

        return tuple(name for name in available_precisions("cpu") if name != "float16")
    if setting.device != "cpu" and engine != "onnxruntime":
        return ("float32", "float16")
    return ("float32",)


def network_job(setting: Setting, engine: str, precision: str, *, end_to_end: bool = False) -> NetworkJob:
    """The job of one of our engines."""
    return NetworkJob(
        model=setting.network.files,
        engine=engine,
        device=setting.device,
        precision=precision,
        height=setting.height,
        width=setting.width,
        batch=setting.batch,
        threads=None if setting.device in ("gpu", "npu") else setting.threads,  # there it means nothing
        image=str(setting.image) if end_to_end else None,
        candidates=_USUAL_CANDIDATES if setting.network.random else None,
    )


def _starter(setting: Setting, engine: str, precision: str, end_to_end: bool) -> Callable[[], Process]:
    job = network_job(setting, engine, precision, end_to_end=end_to_end)
    return lambda: Worker(job, threads=setting.threads)


def _start_opencv(setting: Setting) -> Process:
    from scaledyolo.bench.opencv import write_for_opencv

    if setting.device != "cpu":
        raise UsageError("opencv is measured on the cpu only")
    network = setting.network
    if network.graph is None and _suffix(network) == ONNX_SUFFIX:
        files: tuple[str, ...] = network.files
    else:
        graph, weights = network.load()
        sized = graph.with_size(setting.height, setting.width)
        files = write_for_opencv(sized, weights, setting.folder / OPENCV, setting.batch)
    job = OpenCvJob(files, setting.height, setting.width, setting.batch, setting.threads)
    return Worker(job, threads=setting.threads)


def _start_darknet(setting: Setting, binary: str) -> Process:
    from scaledyolo.bench.darknet import DarknetProcess
    from scaledyolo.bench.opencv import write_darknet_pair

    if setting.batch != 1:
        raise UsageError("darknet detects in one image at a time; leave out --batch or the rival")
    graph, weights = setting.network.load()
    sized = graph.with_size(setting.height, setting.width)
    folder = setting.folder / DARKNET
    cfg, file = write_darknet_pair(sized, weights, folder)
    return DarknetProcess(
        binary, cfg, file, setting.image, sized, threads=setting.threads, folder=folder / "working-folder"
    )


class Gemms:
    """Matrix products by precision, started when first wanted and kept through all rounds."""

    def __init__(self, device: str, threads: int) -> None:
        self._device, self._threads = device, threads
        self._workers: dict[tuple[str, str], Worker] = {}

    def wanted(self, precision: str) -> dict[tuple[str, str], Worker]:
        """Running products of a precision, by (library, precision); empty where nothing here computes in it."""
        for library in self._libraries(precision):
            if (library, precision) not in self._workers:
                job = GemmJob(library, self._device, precision, self._threads)
                self._start(job)
        return {key: worker for key, worker in self._workers.items() if key[1] == precision}

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()

    def _start(self, job: GemmJob) -> None:
        try:
            self._workers[job.library, job.precision] = Worker(job, threads=self._threads)
        except CandidateError:  # without it there is no share of the peak, which the row shows
            return

    def _libraries(self, precision: str) -> list[str]:
        if self._device == "cuda":
            return ["torch"]
        if self._device != "cpu":
            return []
        installed = ["openvino"] if importlib.util.find_spec("openvino") is not None else []
        return ["numpy", *installed] if precision == "float32" else installed
