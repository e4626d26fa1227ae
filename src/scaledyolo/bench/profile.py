"""Time every kernel that an engine makes of a network, by the engine's own counters, inside a process of its own."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaledyolo.bench.candidates import model_of
from scaledyolo.bench.jobs import NetworkJob, ProfileJob
from scaledyolo.convert.onnx_writer import INPUT_NAME, to_onnx
from scaledyolo.engines.faithful import scene
from scaledyolo.errors import UsageError, nearest
from scaledyolo.model import load_model

# What ONNX Runtime appends to the name of a node that it rewrote for its blocked layout.
_ORT_SUFFIX: Final = re.compile(r"(_nchwc)?(_token_\d+)?$")
_ORT_EVENT: Final = "_kernel_time"

# For each kernel: its name, what it is, the names of all ONNX nodes that went into it, milliseconds.
Kernel = dict[str, Any]
# One run: every kernel that was executed.
Run = Callable[[], list[Kernel]]


class ProfileCandidate:
    """A network whose engine counts the time of every kernel; the counting itself costs a little."""

    def __init__(self, job: ProfileJob) -> None:
        network = job.network
        if network.engine not in _PROFILERS:
            known = ", ".join(_PROFILERS)
            raise UsageError(
                f"{network.engine} does not tell the time of each layer; {known} do.{nearest(network.engine, known)}"
            )
        checkpoint = load_model(model_of(network))
        graph = checkpoint.graph.with_size(network.height, network.width)
        model = to_onnx(graph, dict(checkpoint.weights), batch=network.batch).SerializeToString()
        images = np.stack([scene(graph.channels, graph.height, graph.width, seed) for seed in range(network.batch)])
        self._runs, self._rounds = _PROFILERS[network.engine](model, network), job.rounds
        self._images = images

    def facts(self) -> dict[str, Any]:
        """Nothing that is not known already."""
        return {}

    def sample(self) -> dict[str, Any]:
        """The time of each kernel in its fastest round, after a warm-up: a roofline is of a quiet machine."""
        rounds = self._runs(self._images, self._rounds)
        kernels = [{**kernel, "ms": min(row[index]["ms"] for row in rounds)} for index, kernel in enumerate(rounds[0])]
        return {"kernels": kernels}


_Profiler = Callable[[np.ndarray, int], list[list[Kernel]]]


def _openvino(model: bytes, job: NetworkJob) -> _Profiler:
    from scaledyolo.engines.openvino import PRECISIONS, import_openvino

    core = import_openvino().Core()
    options = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[job.precision],
        "INFERENCE_NUM_THREADS": str(job.threads),
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": "YES",
    }
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    sources = {
        node.get_friendly_name(): _original_names(node.get_rt_info())
        for node in compiled.get_runtime_model().get_ordered_ops()
    }
    request = compiled.create_infer_request()

    def one_round(images: np.ndarray) -> list[Kernel]:
        request.infer({0: images})
        return [
            {
                "name": info.node_name,
                "type": f"{info.node_type} {info.exec_type}",
                "sources": sources.get(info.node_name, []),
                "ms": 1e3 * info.real_time.total_seconds(),
            }
            for info in request.profiling_info
            if str(info.status).endswith(".EXECUTED")  # the rest became part of another kernel
        ]

    def run(images: np.ndarray, rounds: int) -> list[list[Kernel]]:
        one_round(images)
        return [one_round(images) for _ in range(rounds)]

    return run


def _original_names(facts: Mapping[str, Any]) -> list[str]:
    try:
        names = str(facts["originalLayersNames"].astype(str))
    except (KeyError, RuntimeError, TypeError):
        return []
    return [name for name in names.split(",") if name]


def _onnxruntime(model: bytes, job: NetworkJob) -> _Profiler:
    import onnxruntime

    def run(images: np.ndarray, rounds: int) -> list[list[Kernel]]:
        with tempfile.TemporaryDirectory(prefix="scaledyolo-profile-") as folder:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = job.threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as our engine does
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for _ in range(1 + rounds):
                session.run(None, {INPUT_NAME: images})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return split_rounds(events, 1 + rounds)[1:]

    return run


def split_rounds(events: list[dict[str, Any]], rounds: int) -> list[list[Kernel]]:
    """The kernels of each round from the events of ONNX Runtime's profile, which come in order of execution.

    Args:
        events: the JSON that it wrote.
        rounds: how often the network ran.
    """
    kernels: list[Kernel] = [
        {
            "name": _ORT_SUFFIX.sub("", event["name"].removesuffix(_ORT_EVENT)),
            "type": event["args"].get("op_name", ""),
            "sources": [],
            "ms": event["dur"] / 1e3,  # microseconds
        }
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(_ORT_EVENT)
    ]
    count = len(kernels) // rounds
    return [kernels[start : start + count] for start in range(0, count * rounds, count)]


_PROFILERS: Final[dict[str, Callable[[bytes, NetworkJob], _Profiler]]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}
PROFILED_ENGINES: Final = tuple(_PROFILERS)
