"""`scaledyolo describe --roofline`: what bounds each stage on a machine that was measured, now or before."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.groups import group_costs
from scaledyolo.arch.roofline import BYTES_PER_VALUE, Roof, StageRoof, stage_roofs
from scaledyolo.arch.roofline_drawing import roofline_svg
from scaledyolo.errors import FormatError, UsageError, counted
from scaledyolo.host import usable_cores

NOW = "now"
_SAMPLES = 7  # the best of so many: what disturbs a measurement only adds to it


@dataclass(frozen=True)
class Machine:
    """Where a roof was measured."""

    roof: Roof
    name: str  # in words
    precision: str  # of the matrix product


@dataclass(frozen=True)
class Roofline:
    """The stages of a network under the roof of a machine."""

    machine: Machine
    stages: tuple[StageRoof, ...]

    @classmethod
    def of(cls, source: str, graph: Graph, height: int, width: int) -> Roofline:
        """Of this machine (``now``), or of the one on which a file of `scaledyolo bench --layers --json` was written.

        Raises:
            UsageError: neither ``now`` nor a file.
            FormatError: the file does not hold what is needed.
        """
        measured: dict[str, float] = {}
        if source == NOW:
            machine = measure_machine()
        else:
            machine, measured = read_machine(Path(source), graph, (height, width))
        costs = group_costs(graph, height, width)
        return cls(machine, stage_roofs(costs, machine.roof, measured, precision=machine.precision))

    @property
    def roof(self) -> Roof:
        """That of the machine."""
        return self.machine.roof

    @property
    def least_ms(self) -> float:
        """Milliseconds below which no image can come: all stages at the roof."""
        return sum(stage.least_ms for stage in self.stages)

    def summary(self) -> dict[str, Any]:
        """The figures of the machine and of the whole network as plain values."""
        return {
            "machine": self.machine.name,
            "gflops_per_second": round(self.roof.gflops, 3),
            "gigabytes_per_second": round(self.roof.gigabytes, 3),
            "ridge": round(self.roof.ridge, 3),
            "least_ms": round(self.least_ms, 4),
            "memory_bound_stages": sum(stage.memory_bound for stage in self.stages),
        }

    def add_to(self, rows: Sequence[dict[str, Any]]) -> None:
        """Give every row of a stage what bounds it and its least milliseconds, and those measured."""
        for row, stage in zip(rows, self.stages, strict=True):
            row["bound"] = "memory" if stage.memory_bound else "arithmetic"
            row["least_ms"] = round(stage.least_ms, 4)
            if stage.measured_ms is not None:
                row["measured_ms"] = round(stage.measured_ms, 4)

    def text(self) -> str:
        """Two lines for people."""
        facts, stages = self.summary(), len(self.stages)
        return (
            f"  roofline          {self.roof.gflops:,.1f} GFLOP/s, {self.roof.gigabytes:,.1f} GB/s, ridge at "
            f"{self.roof.ridge:.1f} FLOP for each byte ({self.machine.name})\n"
            f"                    an image takes {self.least_ms:,.2f} ms at least; memory bounds "
            f"{facts['memory_bound_stages']} of {stages} stages"
        )

    def svg(self) -> str:
        """The drawing."""
        return roofline_svg(self.stages, self.roof)


def measure_machine() -> Machine:
    """The best of a few matrix products and copies on all cores of this machine, in float32; takes a few seconds."""
    from scaledyolo.bench.jobs import CopyJob, GemmJob
    from scaledyolo.bench.machine import CopyCandidate, gemm_candidate

    cores = usable_cores()
    library = "openvino" if importlib.util.find_spec("openvino") else "numpy"
    product = gemm_candidate(GemmJob(library, "cpu", "float32", cores))
    copy = CopyCandidate(CopyJob(cores))
    roof = Roof(
        flops_per_s=1e3 * product.facts()["flops"] / _best_ms(product),
        bytes_per_s=1e3 * copy.facts()["bytes"] / _best_ms(copy),
    )
    return Machine(roof, f"{counted(cores, 'core')} of {platform.machine()}, float32", "float32")


def _best_ms(candidate: Any) -> float:
    candidate.sample()
    return min(float(candidate.sample()["ms"]) for _ in range(_SAMPLES))


def read_machine(path: Path, graph: Graph, size: tuple[int, int]) -> tuple[Machine, dict[str, float]]:
    """The roof in a file that `scaledyolo bench --layers --json` wrote; with the milliseconds of an image in each node
    where the file has a row for this network at this size, (height, width) in pixels.

    Raises:
        UsageError: there is no such file.
        FormatError: it is no JSON, or no row in it has a roof.
    """
    if not path.is_file():
        raise UsageError(f"--roofline takes {NOW!r} or a JSON file of `scaledyolo bench --layers`, got {str(path)!r}")
    try:
        rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if row.get("roof")]
        if not rows:
            raise KeyError("roof")
        names = {node.name for node in graph}
        fitting = [row for row in rows if _is_of(row, names, size)]
        row = (fitting or rows)[0]
        threads = counted(row["threads"], "thread")
        machine = Machine(
            roof=Roof(float(row["roof"]["flops_per_s"]), float(row["roof"]["bytes_per_s"])),
            name=f"{threads} of a {row['device']}, {row['precision']}, {row['engine']}",
            precision=row["precision"],
        )
        if machine.precision not in BYTES_PER_VALUE:
            raise ValueError(f"precision {machine.precision!r}")
        layers = row["layers"] if fitting else []
        return machine, {str(layer["name"]): float(layer["ms"]) / row["batch"] for layer in layers}
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise FormatError(f"{path}: no figures of `scaledyolo bench --layers --json` ({error!r})") from None


def _is_of(row: Mapping[str, Any], names: set[str], size: tuple[int, int]) -> bool:
    """Whether a row tells about the layers of a network with these nodes at this size."""
    owners = [layer["name"] for layer in row.get("layers") or () if not layer["name"].startswith("(")]
    return bool(owners) and set(owners) <= names and tuple(row["size"]) == size
