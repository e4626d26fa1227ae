"""The rows of a benchmark as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

from scaledyolo.bench.candidates import STAGES
from scaledyolo.bench.rows import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from scaledyolo.bench.roofline import Layer

_NOISY: Final = 0.10
_SHORT: Final = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "int8"}


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separated; a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share in percent; a dash for None."""
    return "-" if value is None else f"{100 * value:.0f} %"


def engine_label(row: Row) -> str:
    """Engine, version, precision and, where it is not the CPU, the device, in few letters."""
    words = [row.engine, row.version, _SHORT.get(row.precision, row.precision)]
    if row.device != "cpu":
        words.append(row.device)
    return " ".join(word for word in words if word)


def network_label(row: Row) -> str:
    """Network and size; the batch where it is not one image."""
    height, width = row.size
    size = str(height) if height == width else f"{height}x{width}"
    return f"{row.model} {size}" + (f", batch {row.batch}" if row.batch > 1 else "")


def print_report(rows: Sequence[Row], console: Console) -> None:
    """Everything that was measured, as tables."""
    good = [row for row in rows if not row.error]
    for whole, title in ((False, "network alone"), (True, "from an image file to detections")):
        chosen = [row for row in good if row.end_to_end == whole]
        if chosen:
            console.print(_times(chosen, title))
    piped = [row for row in good if row.stages]
    if piped:
        console.print(_stages(piped))
    for row in good:
        if row.layers:
            console.print(_layers_title(row, row.layers), style="italic", soft_wrap=True, highlight=False)
            console.print(_layers(row.layers))
    for line in notes(rows):
        console.print(line, highlight=False, markup=False)


def notes(rows: Sequence[Row]) -> list[str]:
    """What has to be said about the figures, one line each: failures, remarks, noise, how memory was measured."""
    lines = [f"not measured: {network_label(row)} in {engine_label(row)}: {row.error}" for row in rows if row.error]
    good = [row for row in rows if not row.error]
    remarks: dict[str, list[str]] = {}
    for row in good:
        if row.note and row.engine not in remarks.setdefault(row.note, []):
            remarks[row.note].append(row.engine)
    lines += [f"{', '.join(engines)}: {note}" for note, engines in remarks.items()]
    if any((row.noise or 0) > _NOISY for row in good):
        lines.append(f"noise above {percent(_NOISY)}: the machine was busy; ratios still hold")
    if any(row.peak_mb for row in good):
        lines.append("MB: most memory of a process that does nothing else (VmHWM), interpreter and loading included")
    if any(row.peak_share for row in good):
        peaks: dict[str, list[int]] = {}
        for row in good:
            if row.peak_gflops:
                peaks.setdefault(row.precision, []).append(round(row.peak_gflops))
        told = ", ".join(f"{_SHORT.get(name, name)} {_span(values)}" for name, values in peaks.items())
        lines.append(f"peak: of a matrix product in the same rounds, in GFLOP/s: {told}")
    if any(row.layers for row in good):
        lines.append("of roof: least possible time over time taken; above 100 % the data came from a cache")
    return lines


def _span(values: Sequence[int]) -> str:
    """The least and the greatest, once where they are the same."""
    return f"{min(values):,}" + (f" to {max(values):,}" if max(values) > min(values) else "")


def _table(title: str | None, first: str, heads: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _times(rows: Sequence[Row], title: str) -> Table:
    columns: dict[str, Callable[[Row, float], str]] = {
        "ms": lambda row, _: number(row.median_ms, 2),
        "p95": lambda row, _: number(row.p95_ms, 2),
        "noise": lambda row, _: percent(row.noise),
        "images/s": lambda row, _: number(row.images_per_s),
        "ratio": lambda row, best: number((row.median_ms or 0.0) / best, 2),
        "GFLOP/s": lambda row, _: number(row.gflops, 0),
        "of peak": lambda row, _: percent(row.peak_share),
        "MB": lambda row, _: number(row.peak_mb, 0),
    }
    if all(row.gflops is None for row in rows):
        del columns["GFLOP/s"], columns["of peak"]
    threads = f", {rows[0].threads} thread{'s' if rows[0].threads > 1 else ''}, {rows[0].rounds} rounds"
    table = _table(title + threads, "", list(columns))
    best = {row.heat: row.median_ms or 0.0 for row in sorted(rows, key=lambda row: -(row.median_ms or 0.0) / row.batch)}
    for label, group in groupby(rows, key=network_label):
        table.add_row(label, style="bold")
        for row in group:
            table.add_row(f"  {engine_label(row)}", *(cell(row, best[row.heat]) for cell in columns.values()))
    return table


def _stages(rows: Sequence[Row]) -> Table:
    table = _table("stages, ms", "", [*STAGES, "rest", "detections"])
    for row in rows:
        stages = row.stages or {}
        rest = (row.median_ms or 0.0) - sum(stages.values())
        cells = [number(stages.get(stage), 2) for stage in STAGES]
        label = f"{network_label(row)}, {engine_label(row)}"
        table.add_row(label, *cells, number(max(rest, 0.0), 2), str(row.detections))
    return table


def _layers_title(row: Row, layers: Sequence[Layer]) -> str:
    told = (
        f"layers of {network_label(row)} in {engine_label(row)}: {sum(layer.ms for layer in layers):.2f} ms "
        f"in the fastest rounds of each, median of the whole {number(row.median_ms, 2)} ms"
    )
    if row.roof is None:
        return told
    return f"{told}; roof {row.roof.gflops:,.0f} GFLOP/s and {row.roof.gigabytes:,.1f} GB/s"


def _layers(layers: Sequence[Layer]) -> Table:
    heads = ("ms", "share", "GFLOP/s", "GB/s", "FLOP/byte", "bound by", "of roof", "kernels")
    table = _table(None, "layer", heads)
    for layer in layers:
        more = f" +{len(layer.nodes) - 1}" if len(layer.nodes) > 1 else ""
        table.add_row(
            layer.name + more,
            number(layer.ms, 3),
            percent(layer.share),
            number(layer.gflops, 0),
            number(layer.gbytes, 1),
            number(layer.intensity, 1),
            layer.bound,
            percent(layer.roof_share),
            ", ".join(sorted({kernel.split()[0] for kernel in layer.kernels if kernel})),
        )
    return table
