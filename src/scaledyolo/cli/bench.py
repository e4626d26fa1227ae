"""`scaledyolo bench`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scaledyolo.cli.exit_codes import EXIT_INCOMPLETE, EXIT_INTERRUPTED
from scaledyolo.cli.options import sides_in_word
from scaledyolo.errors import UsageError

if TYPE_CHECKING:
    from scaledyolo.bench.rows import Row

# Wide enough for every column where the output is no terminal.
_FILE_WIDTH = 160


@dataclass(frozen=True)
class Bench:
    """Measure how fast networks run here, in turns, beside a matrix product of the same machine.

    Each engine has a process of its own; each round runs all of them in another order. Times are medians.
    """

    model: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")]
    """Zoo names (random weights), checkpoints, Darknet cfg and weights one after the other, exported files."""
    engines: tuple[str, ...] = ("all",)
    """all that are installed, auto (what a detector chooses by itself), or openvino, onnxruntime, torch, opencv."""
    sizes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SIDE | HEIGHTxWIDTH")] = ()
    """Network inputs in pixels; by default each model's own."""
    batch: tuple[int, ...] = (1,)
    """Images at a time."""
    precision: tuple[str, ...] = ()
    """f32, bf16, f16; by default all that an engine computes natively. Rivals compute in f32."""
    end_to_end: bool = False
    """Also measure from an image file to detections, with the share of each stage."""
    layers: bool = False
    """Also time every layer: what it achieves, and whether arithmetic or memory holds it up."""
    together: bool = False
    """Measure all models in the same rounds, so that their ratios hold too; they are all in memory then."""
    image: Path | None = None
    """Picture for --end-to-end; by default one is made."""
    device: str = "cpu"
    """Where engines run: cpu, cuda, or Intel's gpu and npu."""
    threads: int | None = None
    """CPU threads of each; by default one for each physical core."""
    rounds: int = 30
    """Samples of each."""
    warmup: int = 3
    """Rounds before that are not counted."""
    seconds: float | None = None
    """End the rounds of one network, size and batch after this time, but not before three."""
    rival_darknet: str | None = None
    """A darknet binary that runs the same network with the same weights."""
    json: bool = False
    """Print a list of rows as JSON instead of tables."""
    plot: Path | None = None
    """Also draw latency and throughput into this file (.png, .svg, .pdf); with --layers a roofline beside it."""

    def run(self) -> int:
        from scaledyolo.bench.timing import Interrupted

        if self.plot is not None:
            from scaledyolo.bench.plot import check_plot

            check_plot(self.plot)
        try:
            rows, stopped = self._measure(), False
        except Interrupted as stop:
            rows, stopped = stop.measured, True
        if not stopped and all(row.error for row in rows):
            reasons = dict.fromkeys(row.error for row in rows) or ("no engine that is installed runs it",)
            raise UsageError(f"nothing could be measured: {'; '.join(reasons)}")
        if self.json:
            print(json.dumps([row.to_dict() for row in rows], indent=1))
        else:
            _print(rows)
        measured = any(not row.error for row in rows)
        if self.plot is not None and measured:
            self._draw(rows, self.plot)
        if stopped:
            return _stopped(measured)
        return EXIT_INCOMPLETE if any(row.error for row in rows) else 0

    def _measure(self) -> list[Row]:
        from scaledyolo.bench.run import Options, bench

        return bench(
            self.model,
            Options(
                engines=listed(self.engines),
                precisions=listed(self.precision),
                sizes=tuple(sides_in_word(word) for word in listed(self.sizes)),
                batches=self.batch,
                device=self.device,
                threads=self.threads,
                rounds=self.rounds,
                warmup=self.warmup,
                seconds=self.seconds,
                end_to_end=self.end_to_end,
                layers=self.layers,
                together=self.together,
                image=self.image,
                darknet=self.rival_darknet,
            ),
            tell=_tell,
        )

    def _draw(self, rows: list[Row], path: Path) -> None:
        from scaledyolo.bench.plot import draw

        for written in draw(rows, path):
            if not self.json:
                print(f"plot in {written}")


def listed(words: tuple[str, ...]) -> tuple[str, ...]:
    """Values that may be separated by commas as well as by spaces."""
    return tuple(part for word in words for part in word.split(",") if part)


def _print(rows: list[Row]) -> None:
    import sys

    from rich.console import Console

    from scaledyolo.bench.report import print_report

    print_report(rows, Console(width=None if sys.stdout.isatty() else _FILE_WIDTH))


def _stopped(measured: bool) -> int:
    """Say that somebody stopped it, and what that means for the figures; returns the exit code."""
    import sys

    told = "; these are the rounds that were complete" if measured else " before a single round was complete"
    print(f"scaledyolo: interrupted{told}", file=sys.stderr)
    return EXIT_INTERRUPTED


def _tell(text: str) -> None:
    """Say on standard error what is being measured, where somebody looks."""
    import sys

    if sys.stderr.isatty():
        print(f"measuring {text} ...", file=sys.stderr)
