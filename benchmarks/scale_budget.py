"""Does what `scaledyolo scale` chooses keep its budget? Each choice is measured again in a process of its own.

    python benchmarks/scale_budget.py [--fps 5 15 30 60] [--threads N] [--size-range 256 640] [--rounds 60]

For every frame rate: `scale --refresh` in one process, then a Detector of the written spec in another, then `scale`
again from scratch. Prints the budget, what was predicted, measured and measured again, whether the second measurement
is within 10 % of the budget, and whether both searches found the same network (or one as capable within the noise).
Wants a machine that does nothing else. About a minute for each frame rate on two cores, less what is cached.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

TOLERANCE = 0.1  # of the budget, for the measurement in a new process


@dataclass(frozen=True)
class Options:
    """What to check."""

    fps: tuple[float, ...] = (5, 15, 30, 60)
    """Frames a second."""
    base: str = "auto"
    """What is scaled; see `scaledyolo scale --help`."""
    size_range: tuple[int, int] = (256, 640)
    """Sides of the network input in pixels."""
    threads: int | None = None
    """Threads of the engine; by default all cores."""
    rounds: int = 60
    """Samples of the second measurement."""
    again: Path | None = None
    """Spec file to measure, as the second process does; nothing else is done."""


def measure(path: Path, options: Options) -> dict[str, float]:
    """Milliseconds of one image through a Detector of a spec with random weights."""
    from scaledyolo.bench.timing import interleaved
    from scaledyolo.design.device import EngineDevice, frame
    from scaledyolo.model import load_spec

    detector = EngineDevice(threads=options.threads).open(load_spec(path))
    runs = {"network": lambda: detector.candidates([frame()])}
    timing = interleaved(runs, rounds=options.rounds, warmup=5)["network"]
    return {"median_ms": timing.median_ms, "p95_ms": timing.p95_ms, "noise": timing.noise}


def scale(fps: float, options: Options, out: Path, *, refresh: bool) -> dict[str, Any]:
    """The answer of the command line."""
    words = ["scale", "--fps", str(fps), "--base", options.base, "--size-range", *map(str, options.size_range)]
    words += ["--json", "--out", str(out)] + (["--refresh"] if refresh else [])
    words += [] if options.threads is None else ["--threads", str(options.threads)]
    return run([sys.executable, "-m", "scaledyolo", *words])


def run(command: list[str]) -> dict[str, Any]:
    """JSON that a process prints; its progress is shown."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])}: ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(fps: float, options: Options, folder: Path) -> bool:
    """Print one line for a frame rate; whether it kept its budget and was found again."""
    out = folder / "chosen.yaml"
    first = scale(fps, options, out, refresh=True)
    here = [sys.executable, __file__, "--again", str(out), "--rounds", str(options.rounds)]
    here += [] if options.threads is None else ["--threads", str(options.threads)]
    again = run(here)
    second = scale(fps, options, folder / "second.yaml", refresh=True)
    cached = scale(fps, options, folder / "third.yaml", refresh=False)
    chosen, other = first["chosen"], second["chosen"]
    budget = 1000 / fps
    kept: bool = again["median_ms"] <= budget * (1 + TOLERANCE)
    noise = max(chosen["noise"], other["noise"])
    same = chosen["spec"] == other["spec"]
    alike = same or abs(chosen["capacity"] / other["capacity"] - 1) <= noise
    print(
        f"{fps:6.1f} fps  budget {budget:7.1f} ms  predicted {chosen['predicted_ms']:7.1f}  measured "
        f"{chosen['median_ms']:7.1f} (noise {100 * chosen['noise']:.0f} %)  again {again['median_ms']:7.1f} "
        f"{'kept' if kept else 'BROKEN'}  error {100 * first['predictor_error']:.1f} %  finalists "
        f"{100 * first['finalist_error']:.1f} %  {first['seconds']:.0f} s, cached {cached['seconds']:.1f} s  "
        f"{'same network' if same else 'alike' if alike else 'ANOTHER NETWORK'}: {chosen['spec']['name']}"
        f"{'' if same else ' / ' + other['spec']['name']}",
        flush=True,
    )
    remembered: bool = cached["chosen"]["spec"] == other["spec"]
    return kept and alike and remembered


def main(options: Options) -> int:
    """Check every frame rate; 1 if one failed."""
    if options.again is not None:
        print(json.dumps(measure(options.again, options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = [check(fps, options, Path(folder)) for fps in options.fps]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
