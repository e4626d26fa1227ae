"""Draw average precision against training time and against latency, from run folders: a PNG and an SVG.

    scaledyolo bench yolov4-tiny yolov4-csp-s --sizes 320 416 --json > bench.json
    python scripts/plot_records.py runs/ablate-small-data/*--seed0 --latency bench.json --title "BCCD" \\
        --out docs/images/records-bccd --point "rival nano, 416" 35.6 0.488

A run folder is what ``scaledyolo train`` made, the folder around it, or a cell of ``scaledyolo ablate``. Time is that
of all cores together, minutes times threads, so that runs with one and with two can be compared. Thin lines follow AP
on the validation split during training; dots are AP on the test images where `ablate` measured it or --ap says it, else
the best of the line. A run has the latency of its network at its input size in the file of `bench`; a plain mapping of
names of runs to milliseconds will do as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from run_records import RUN_FILE, read_record

from scaledyolo.errors import FormatError, ScaledYoloError

EXIT_ERROR = 2
RIVAL_COLOUR = "0.35"


@dataclass(frozen=True)
class Options:
    """What to draw."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or the folders around them."""
    out: Path = Path("records")
    """Files to write, without their endings."""
    title: str = ""
    """What the runs have in common, such as the data set."""
    names: tuple[str, ...] = ()
    """What to call the runs, in their order; by default their folders."""
    ap: tuple[float, ...] = ()
    """AP of the runs on the test images, in their order, where `scaledyolo eval` measured it; 0: look in the folder."""
    latency: Path | None = None
    """JSON with milliseconds an image, for the second panel."""
    engine: str = ""
    """Of the latencies, where the file has several; by default the fastest of each run."""
    point: tuple[tuple[str, float, float], ...] = ()
    """Others to compare with: name, core-minutes of training, AP."""


@dataclass(frozen=True)
class Entry:
    """One run as it is drawn."""

    name: str
    curve: Sequence[tuple[float, float]]  # core-minutes, AP on the validation split
    minutes: float  # of training, of all cores together
    ap: float  # on the test split where it was measured
    latency_ms: float | None = None


def entries(options: Options) -> list[Entry]:
    """The runs, read.

    Raises:
        FormatError: a folder is no run, a run has no AP yet, or names and runs are not of one number.
    """
    for what, values in (("names", options.names), ("values of AP", options.ap)):
        if values and len(values) != len(options.runs):
            raise FormatError(f"{len(values)} {what} for {len(options.runs)} runs; give one for each")
    latencies = read_latencies(options.latency, options.engine) if options.latency else {}
    found = []
    for place, folder in enumerate(options.runs):
        record = read_record(folder if (folder / RUN_FILE).is_file() else folder / "train")
        name = options.names[place] if options.names else record.name
        if not record.curve:
            raise FormatError(f"{folder}: never evaluated so far; wait for its first evaluation")
        measured = options.ap[place] if options.ap and options.ap[place] else record.test_ap
        ap = max(ap for _, ap in record.curve) if measured is None else measured
        spec = record.document["spec"]
        latency = latencies.get(name, latencies.get((spec["name"], spec["size"])))
        curve = [(record.cores * minutes, value) for minutes, value in record.curve]
        found.append(Entry(name, curve, record.cores * record.seconds / 60, ap, latency))
    return found


Latencies = Mapping["str | tuple[str, int]", float]


def read_latencies(path: Path, engine: str) -> Latencies:
    """Milliseconds an image by name of the run, or by name and input size of the network.

    Raises:
        FormatError: the file is missing or of another kind.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: no readable JSON ({error})") from None
    if isinstance(document, dict) and document and all(isinstance(value, (int, float)) for value in document.values()):
        return {name: float(value) for name, value in document.items()}
    try:
        return _bench_latencies(document, engine)
    except (KeyError, TypeError, AttributeError):
        raise FormatError(f"{path}: neither of `scaledyolo bench --json` nor milliseconds by name") from None


def _bench_latencies(rows: Sequence[Mapping[str, Any]], engine: str) -> Latencies:
    """Of each network and square size the fastest way to run it alone, one image at a time."""
    best: dict[str | tuple[str, int], float] = {}
    for row in rows:
        alone = not row["error"] and not row["end_to_end"] and row["batch"] == 1
        if alone and row["size"][0] == row["size"][1] and engine in ("", row["engine"]):
            key = (row["model"], row["size"][0])
            best[key] = min(best.get(key, float("inf")), row["median_ms"])
    return best


def draw(found: Sequence[Entry], options: Options) -> Figure:
    """One panel, or two where there are latencies."""
    timed = [(entry.latency_ms, entry) for entry in found if entry.latency_ms is not None]
    figure = Figure(figsize=(11 if timed else 6.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if timed else 1, squeeze=False)
    colours = {entry.name: f"C{place % 10}" for place, entry in enumerate(found)}
    draw_training(panels[0, 0], found, colours, options.point)
    if timed:
        draw_latency(panels[0, 1], timed, colours)
    for axes in panels[0]:
        axes.set_ylabel("AP")
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    columns = min(len(handles), 4 if timed else 2)
    # Below both panels, where it hides nothing: one colour is one run in either.
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)
    if options.title:
        figure.suptitle(options.title)
    return figure


def draw_training(
    axes: Axes, found: Sequence[Entry], colours: Mapping[str, str], others: Sequence[tuple[str, float, float]]
) -> None:
    """AP against core-minutes of training: the way there, and where it ended."""
    for entry in found:
        axes.plot(*zip(*entry.curve, strict=True), color=colours[entry.name], linewidth=1, alpha=0.6)
        axes.plot(entry.minutes, entry.ap, "o", color=colours[entry.name], label=f"{entry.name}: {entry.ap:.3f}")
    for name, minutes, ap in others:
        axes.plot(minutes, ap, "D", color=RIVAL_COLOUR, label=f"{name}: {ap:.3f}")
        axes.plot([0, minutes], [ap, ap], ":", color=RIVAL_COLOUR, linewidth=1)
    axes.set_xlabel("core-minutes of training")
    axes.set_xlim(left=0)


def draw_latency(axes: Axes, timed: Sequence[tuple[float, Entry]], colours: Mapping[str, str]) -> None:
    """AP against milliseconds an image, and the front of those that no other beats in both."""
    front, best = [], -1.0
    for latency_ms, entry in sorted(timed, key=lambda item: (item[0], -item[1].ap)):
        if entry.ap > best:
            front.append((latency_ms, entry.ap))
            best = entry.ap
    axes.step(*zip(*front, strict=True), where="post", color="0.75", linewidth=1, zorder=1)
    for latency_ms, entry in timed:
        axes.plot(latency_ms, entry.ap, "o", color=colours[entry.name])
    axes.set_xlabel("milliseconds an image")
    axes.set_xlim(left=0, right=1.1 * max(latency_ms for latency_ms, _ in timed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 drawn, 2 where something cannot be read."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    try:
        if not options.runs:
            raise FormatError("nothing to draw; name run folders")
        figure = draw(entries(options), options)
    except ScaledYoloError as error:
        print(f"plot_records: {error}", file=sys.stderr)
        return EXIT_ERROR
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for ending, metadata in ((".png", None), (".svg", {"Date": None})):
        path = options.out.with_name(options.out.name + ending)
        figure.savefig(path, dpi=150, metadata=metadata)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
