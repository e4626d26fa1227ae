"""Every network of the paper's Tables 11 and 13 on a GPU, in frames per second at its own size.

    python benchmarks/gpu_tables.py --out gpu.jsonl --minutes 9 [--models yolov4-csp@640 yolov4-p5] [--device cuda]

At batch 1 and at the best batch (doubled until throughput grows by less than 3 % or memory ends), the network alone and
end to end: from uint8 images of 640 x 480 that lie on the GPU to rows of detections, with nothing read back in between.
All of it is replayed as CUDA graphs, first as torch computes it ("eager"), then with kernels written by torch.compile
("compiled"). TFLOP/s count two operations for each multiply-add of the convolutions; the share is that of a large
matrix product in the same precision, which is measured in the same rounds, in turns with the network. Calls are queued
without waiting for each other, timed by events on the device. Weights are random; what they detect fills every slot of
suppression, so that end to end is the worst case.

Rows go to a file of JSON lines as they come; a second call with the same file goes on where the first ended. A network
that fails is a row with its reason. Ends with the table of all rows in the file.

Needs numpy, array-api-compat and a torch for CUDA (with Triton, as it comes on Linux; without, suppression takes
hundreds of launches, which the rows say), and this checkout's ``src`` in PYTHONPATH; nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find
from scaledyolo.bench.timing import Timing, interleaved_samples
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.classes import default_names
from scaledyolo.engines.on_device import PRECISIONS, DeviceDetector
from scaledyolo.engines.torch import Forward, ReplayedForward
from scaledyolo.errors import UsageError
from scaledyolo.weights import random_weights

Row = dict[str, Any]
Run = Callable[[], object]
FORMS: Final = ("eager", "compiled")
GROWTH: Final = 1.03  # of throughput, below which a batch is not doubled again
SAMPLE_MS: Final = 20.0  # what one sample takes at least, by calling again
PEAK_SIDE: Final = {"cuda": 8192, "cpu": 512}  # of the matrices
IMAGE_SIZE: Final = (480, 640)

# Networks of Tables 11 and 13, those of the paper first, and what it prints: frames per second of the network alone and
# with suppression, at batch 1.
NETWORKS: Final[dict[str, str]] = {
    "yolov4-csp@640": "73 / 70, V100",
    "yolov4-p5@896": "43 / 41, V100",
    "yolov4-p6@1280": "32 / 30, V100",
    "yolov4-p7@1536": "16 / 15, V100",
    "yolov4-tiny@416": "443, RTX 2080 Ti",
    "yolov4-tiny-3l@320": "252, GTX 1080 Ti",
    "yolov4-csp-s-leaky@320": "252, GTX 1080 Ti",
    "yolov3-tiny@416": "",
    "yolov4-csp@512": "",
    "yolov4@608": "",
    "yolov3-spp@608": "",
    "yolov4-csp-s@640": "",
}


@dataclass(frozen=True)
class Job:
    """One network in one precision and form."""

    model: str
    size: int  # pixels, height and width
    precision: str
    form: str

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from the others in the file of rows."""
        return self.model, self.size, self.precision, self.form

    def __str__(self) -> str:
        return f"{self.model} at {self.size}, {self.precision}, {self.form}"


class Stopwatch:
    """Times what a device does."""

    def __init__(self, device: str) -> None:
        self.on_gpu = torch.device(device).type == "cuda"

    def call_ms(self, run: Run, calls: int = 1) -> float:
        """Milliseconds of one of so many calls that are queued one after the other."""
        if not self.on_gpu:
            before = time.perf_counter()
            for _ in range(calls):
                run()
            return 1e3 * (time.perf_counter() - before) / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / calls

    def ready(self, run: Run) -> Callable[[], float]:
        """What takes one sample, of as many calls as take long enough, of something that is warmed up here."""
        run()
        once = statistics.median(self.call_ms(run) for _ in range(3))
        return partial(self.call_ms, run, max(1, math.ceil(SAMPLE_MS / max(once, 1e-3))))


class Contest:
    """The candidates of one network: alone and end to end, at batch 1 and at the best."""

    def __init__(self, job: Job, device: str, batches_up_to: int) -> None:
        self.job, self.device = job, device
        self.side = PEAK_SIDE[torch.device(device).type]
        self.watch = Stopwatch(device)
        self.tried: dict[int, float] = {}
        self._open()
        self.stopped = self._search(batches_up_to)

    @torch.inference_mode(False)  # torch.compile wants weights that are ordinary tensors
    def _open(self) -> None:
        model, compiled = checkpoint_of(self.job.model, self.job.size), self.job.form == "compiled"
        self.detector = DeviceDetector(model, device=self.device, precision=self.job.precision, compiled=compiled)
        self.graph = model.graph
        self.network: Forward = self.detector.network
        if self.watch.on_gpu:
            self.network = ReplayedForward(self.detector.network)

    def input(self, batch: int) -> Tensor:
        """Input of the network."""
        shape = (batch, self.graph.channels, self.graph.height, self.graph.width)
        images = torch.rand(shape, device=self.device, dtype=self.detector.dtype)
        return images.contiguous(memory_format=torch.channels_last)

    def _search(self, up_to: int) -> str:
        """Fill ``tried`` with images a second of each batch; says why there is no larger one.

        Kernels of torch's own are launched one by one here: where the batch is large enough to matter, the device is
        busy with one while the next is being launched, and recording or compiling each batch would take minutes.
        """
        plain = self.detector.plain_network
        batch, previous = 1, 0.0
        while batch <= up_to:
            try:
                run = partial(plain, self.input(batch))
                run()
                ms = statistics.median(self.watch.call_ms(run, 2) for _ in range(3))
            except RuntimeError as error:  # memory ends, or a kernel cannot count so far
                if batch == 1:
                    raise
                return f"a batch of {batch} fails: {error}".partition("\n")[0][:200]
            throughput = 1e3 * batch / ms
            self.tried[batch] = throughput
            if throughput < GROWTH * previous:
                return f"a batch of {batch} is only {throughput / previous:.2f} times as fast"
            batch, previous = 2 * batch, throughput
        return "no larger one was tried"

    @property
    def best(self) -> int:
        """The best batch: the last that was worth doubling to."""
        batches = sorted(self.tried)
        last = batches[-1]
        return batches[-2] if len(batches) > 1 and self.tried[last] < GROWTH * self.tried[batches[-2]] else last

    def measure(self, rounds: int, seconds: float) -> list[Row]:
        """Rows of batch 1 and the best batch, which is halved as long as it does not fit with its graphs."""
        batch = self.best
        while True:
            try:
                rows = self._measured(sorted({1, batch}), rounds, seconds)
            except torch.cuda.OutOfMemoryError:
                if batch == 1:
                    raise
            else:
                if batch == 1 or not any("out of memory" in (row["plain_because"] or "").lower() for row in rows):
                    return rows
            self.stopped = f"no memory for the graphs of a batch of {batch}"
            batch //= 2
            del self.detector, self.network
            free_memory()
            self._open()

    def _measured(self, batches: Sequence[int], rounds: int, seconds: float) -> list[Row]:
        runs: dict[tuple[str, int], Run] = {("peak", 0): self._matrix_product()}
        for batch in batches:
            images = torch.randint(0, 256, (batch, *IMAGE_SIZE, 3), dtype=torch.uint8, device=self.device)
            runs["network", batch] = partial(self.network, self.input(batch))
            runs["end to end", batch] = partial(self.detector, images)
        measures = {name: self.watch.ready(run) for name, run in runs.items()}
        samples = interleaved_samples(measures, rounds=rounds, warmup=1, seconds=seconds)
        timings = {name: Timing(tuple(values)) for name, values in samples.items()}
        peak = 2 * self.side**3 / timings["peak", 0].median_ms / 1e9
        return [self._row(batch, timings, peak) for batch in batches]

    def _matrix_product(self) -> Run:
        left, right = (torch.randn(self.side, self.side, device=self.device).to(self.detector.dtype) for _ in range(2))
        return partial(torch.matmul, left, right, out=torch.empty_like(left))

    def _row(self, batch: int, timings: dict[tuple[str, int], Timing], peak: float) -> Row:
        gflops = cost(self.graph).gflops
        network, whole = timings["network", batch], timings["end to end", batch]
        images = torch.empty((batch, *IMAGE_SIZE, 3), device="meta")
        tflops = gflops * batch / network.median_ms
        row: Row = {
            "batch": batch,
            "network_ms": network.median_ms,
            "network_noise": network.noise,
            "network_fps": 1e3 * batch / network.median_ms,
            "end_to_end_ms": whole.median_ms,
            "end_to_end_noise": whole.noise,
            "end_to_end_fps": 1e3 * batch / whole.median_ms,
            "gflops": gflops,
            "tflops_per_s": tflops,
            "peak_tflops_per_s": peak,
            "peak_noise": timings["peak", 0].noise,
            "share_of_peak": tflops / peak,
            "tried": self.tried,
            "stopped": self.stopped,
            "plain_because": self.detector.plain_because(images),
            "by_rank_because": self.detector.by_rank_because,
        }
        if isinstance(self.network, ReplayedForward):
            row["plain_because"] = row["plain_because"] or self.network.refused.get(tuple(self.input(batch).shape))
        if self.watch.on_gpu:
            row["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return row


@lru_cache(maxsize=1)  # jobs of one network come one after the other
def checkpoint_of(model: str, size: int) -> Checkpoint:
    """A network with random weights."""
    graph = lower(find(model)).with_size(size, size)
    weights = random_weights(graph, np.random.default_rng(0))
    return Checkpoint(graph=graph, weights=weights, class_names=default_names(graph.num_classes))


def free_memory() -> None:
    """Give back what the job before has held."""
    gc.collect()
    if "torch._dynamo" in sys.modules:  # else there is nothing to forget, and much to import
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; a line that was cut off is none."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: a line was cut off and is left out", file=sys.stderr)
    return rows


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Put rows behind those of a file, all or none but for a power cut."""
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    text = ("\n" if cut_off else "") + "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def key_of(row: Row) -> tuple[object, ...]:
    """See :attr:`Job.key`."""
    return row["model"], row["size"], row["precision"], row["form"]


def current(rows: Sequence[Row]) -> list[Row]:
    """The rows that count: a failure does not where the same was measured, or failed, again later."""
    measured = {key_of(row) for row in rows if "reason" not in row}
    failures = {key_of(row): row for row in rows if "reason" in row and key_of(row) not in measured}
    return [row for row in rows if "reason" not in row] + list(failures.values())


def table(rows: Sequence[Row]) -> str:
    """Rows in Markdown, with the failures under them."""
    header = (
        "network", "size", "precision", "form", "batch", "fps", "end to end", "TFLOP/s", "share", "noise", "paper"
    )  # fmt: skip
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join(['---'] * 4 + ['---:'] * 6 + ['---'])} |"]
    for row in rows:
        if "reason" in row:
            continue
        noise = max(row["network_noise"], row["end_to_end_noise"], row["peak_noise"])
        paper = NETWORKS.get(f"{row['model']}@{row['size']}", "") if row["batch"] == 1 else ""
        cells = (
            row["model"], row["size"], row["precision"], row["form"], row["batch"], f"{row['network_fps']:,.0f}",
            f"{row['end_to_end_fps']:,.0f}", f"{row['tflops_per_s']:,.1f}", f"{row['share_of_peak']:.1%}",
            f"{noise:.2f}", paper,
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for row in rows:
        name = "{model} at {size}, {precision}, {form}".format(**row)
        if "reason" in row:
            lines.append(f"\n{name}: {row['reason']}")
        for what in ("plain_because", "by_rank_because"):
            if row.get(what) and row["device"] != "cpu":
                lines.append(f"\n{name}, batch {row['batch']}: {what.replace('_', ' ')} {row[what]}")
    return "\n".join(lines)


def jobs_of(arguments: argparse.Namespace) -> Iterator[Job]:
    """What to measure, in the order in which it matters: kernels of torch's own for everything first.

    Of these, precisions of a network come one after the other, for its weights take as long as its measurement; of
    compiled ones, which take minutes, all networks come first in one precision.
    """
    for form in arguments.forms:
        pairs = [(name, precision) for name in arguments.models for precision in arguments.precisions]
        if form == "compiled":
            pairs.sort(key=lambda pair: arguments.precisions.index(pair[1]))
        for name, precision in pairs:
            model, _, size = name.partition("@")
            yield Job(model, arguments.size or int(size or find(model).size), precision, form)


def rows_of(job: Job, arguments: argparse.Namespace) -> list[Row]:
    """The rows of a job, or one with the reason why there are none."""
    device = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name(arguments.device)
    facts: Row = {"model": job.model, "size": job.size, "precision": job.precision, "form": job.form}
    facts |= {"device": device, "torch": str(torch.__version__)}
    begun = time.monotonic()
    try:
        with torch.inference_mode():
            rows = Contest(job, arguments.device, arguments.batches_up_to).measure(arguments.rounds, arguments.seconds)
    except Exception as error:  # whatever it is, the other networks can be measured
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        rows = [{"reason": reason[:500]}]
    return [{**facts, **row, "job_seconds": round(time.monotonic() - begun, 1)} for row in rows]


def device_is_lost(device: str) -> str | None:
    """Why nothing more can be computed in this process; None where it can."""
    if device == "cpu":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def parser() -> argparse.ArgumentParser:
    """What can be said."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--out", type=Path, required=True, help="file of JSON lines, gone on with if it exists")
    result.add_argument("--minutes", type=float, default=9.0, help="begin nothing that is likely to end later")
    result.add_argument("--models", nargs="+", default=list(NETWORKS), metavar="NAME[@SIZE]", help="names of the zoo")
    result.add_argument("--precisions", nargs="+", default=["float16", "bfloat16"], choices=tuple(PRECISIONS))
    result.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    result.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; or cpu, for trying only")
    result.add_argument("--batches-up-to", type=int, default=512)
    result.add_argument("--size", type=int, help="pixels, for all networks, for trying only")
    result.add_argument("--rounds", type=int, default=10)
    result.add_argument("--seconds", type=float, default=4.0, help="of rounds, for each job")
    result.add_argument("--again", action="store_true", help="try what failed again")
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is not in the file yet; 1 where something failed or is left for another call, 2 without a GPU."""
    arguments = parser().parse_args(words)
    if arguments.device != "cpu" and not torch.cuda.is_available():
        print("gpu_tables: torch sees no GPU here; --device cpu is for trying only", file=sys.stderr)
        return 2
    try:
        jobs = list(jobs_of(arguments))
    except (UsageError, ValueError) as error:
        print(f"gpu_tables: {error}", file=sys.stderr)
        return 2
    if ":" in arguments.device:
        torch.cuda.set_device(arguments.device)  # events are those of the current device
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    end = time.monotonic() + 60 * arguments.minutes
    done = {key_of(row) for row in current(read_rows(arguments.out)) if not (arguments.again and "reason" in row)}
    longest: dict[str, float] = {}
    left = 0
    for job in jobs:
        if job.key in done:
            continue
        if time.monotonic() + longest.get(job.form, 0.0) >= end:
            left += 1
            continue
        rows = rows_of(job, arguments)
        append_rows(arguments.out, rows)
        longest[job.form] = max(longest.get(job.form, 0.0), rows[0]["job_seconds"])
        print(f"{job}: {summary(rows)}", flush=True)
        free_memory()
        if "reason" in rows[0] and (lost := device_is_lost(arguments.device)):
            print(f"gpu_tables: the device is lost to this process ({lost}); call again", file=sys.stderr)
            left += 1
            break
    rows = current(read_rows(arguments.out))
    print(table(rows))
    if left:
        print(f"\n{left} are left; the same command goes on with them")
    return int(left > 0 or any("reason" in row for row in rows))


def summary(rows: Sequence[Row]) -> str:
    """A job in a line."""
    if "reason" in rows[0]:
        return str(rows[0]["reason"])
    told = (f"batch {row['batch']}: {row['network_fps']:,.0f} and {row['end_to_end_fps']:,.0f} fps" for row in rows)
    return f"{', '.join(told)} ({rows[0]['job_seconds']:.0f} s)"


if __name__ == "__main__":
    raise SystemExit(main())
