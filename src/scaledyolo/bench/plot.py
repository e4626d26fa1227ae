"""One picture of a benchmark, and one of a roofline. Nothing global of matplotlib is touched: no pyplot, no backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.figure import Figure

from scaledyolo.arch.roofline import Roof
from scaledyolo.bench.report import engine_label, network_label, number
from scaledyolo.bench.roofline import Layer
from scaledyolo.bench.rows import Row
from scaledyolo.errors import UsageError, nearest
from scaledyolo.files import output_errors

SUFFIXES: Final = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which people with colour-blindness can tell apart.
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a94a3", "#1f2933")
_MARKERS: Final = "osD^vPX*"
_GREY, _INK = "#8a94a3", "#1f2933"
STYLE: Final = {
    "font.size": 10.5,
    "axes.edgecolor": "#b8c1cc",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "grid.color": "#e4e8ee",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}
_MANY_NETWORKS: Final = 3  # from so many on, lines over capacity say more than bars
_NAME_DISTANCE: Final = 0.035  # of the width: between the names of two networks of nearly one capacity
_NAMED_LAYERS: Final = 8
# Within a power of ten; the first that gives neither too few numbers nor too many is written at an axis.
_TICK_STEPS: Final = ((1, 2, 5), (1,), (1, 1.5, 2, 3, 4, 5, 6, 8))
_FEWEST_TICKS, _MOST_TICKS = 4, 12
_SMALLEST_AREA, _AREA = 20, 2500  # square points: of a layer that takes no time, and of all the time
_BOUND_COLOURS: Final = {"compute": _COLOURS[0], "memory": _COLOURS[3]}


def check_plot(path: Path) -> None:
    """Refuse a file that could not be written, before anything is measured.

    Raises:
        UsageError: a kind of file that is not drawn, or a folder that does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        hint = nearest(path.suffix.lower(), SUFFIXES)
        raise UsageError(f"{path}: a plot is written as {', '.join(SUFFIXES)}.{hint}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first")


def draw(rows: Sequence[Row], path: Path) -> list[Path]:
    """Draw what was measured.

    Args:
        rows: of a benchmark; those with errors are left out.
        path: the file; a roofline goes into ``NAME-roofline.SUFFIX`` beside it.

    Returns:
        The files that were written.

    Raises:
        OutputError: a file cannot be written.
    """
    good = [row for row in rows if not row.error and row.median_ms]
    # The largest network that was profiled says most; one picture holds one roofline.
    profiled = [row for row in good if row.layers]
    with rc_context(STYLE):
        written = [_save(speed_figure(good), path)]
        if profiled:
            row = max(profiled, key=lambda row: row.gflop or 0.0)
            assert row.roof is not None
            assert row.layers is not None
            figure = roofline_figure(row, row.roof, row.layers)
            written.append(_save(figure, path.with_stem(f"{path.stem}-roofline")))
    return written


def _save(figure: Figure, path: Path) -> Path:
    with output_errors(path):
        figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15, facecolor="white")
    return path


def speed_figure(rows: Sequence[Row]) -> Figure:
    """Milliseconds and images a second: over capacity where several networks are compared, else as bars."""
    alone = [row for row in rows if not row.end_to_end]
    capacities = {row.gflop for row in alone if row.gflop}
    return _lines(alone) if len(capacities) >= _MANY_NETWORKS else _bars(rows)


def _bars(rows: Sequence[Row]) -> Figure:
    """One bar for each way to run each network, with its time and throughput written beside it."""
    groups = [(label, list(members)) for label, members in groupby(_by_network(rows), key=network_label)]
    lines = sum(len(members) + 1.2 for _, members in groups)
    figure = Figure(figsize=(8.4, 0.9 + 0.32 * lines))
    axes = figure.subplots()
    engines = _colours(rows)
    longest = max((row.median_ms or 0.0) / row.batch for row in rows)
    y, ticks, labels = 0.0, [], []
    for label, members in groups:
        axes.text(0, y, label, fontweight="bold", va="center", transform=axes.get_yaxis_transform())
        y += 1
        for row in sorted(members, key=lambda row: (row.end_to_end, row.median_ms)):
            ms = (row.median_ms or 0.0) / row.batch
            style: dict[str, Any] = {"hatch": "////", "edgecolor": "white"} if row.end_to_end else {}
            axes.barh(y, ms, height=0.72, color=engines[row.engine], linewidth=0, **style)
            told = f" {number(ms, 2 if ms < 10 else 1)} ms   {number(row.images_per_s)} images/s"
            axes.text(ms + 0.004 * longest, y, told, va="center", fontsize=9.5)
            ticks.append(y)
            labels.append(engine_label(row) + (", end to end" if row.end_to_end else ""))
            y += 1
        y += 0.2
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(y - 0.2, -0.7), xlim=(0, 1.42 * longest), xlabel="milliseconds for each image, median")
    axes.grid(axis="x")
    axes.set_title(_threads(rows), color=_GREY, fontsize=10)
    return figure


def _threads(rows: Sequence[Row]) -> str:
    count = rows[0].threads
    return f"{count} CPU thread{'' if count == 1 else 's'}"


def plain_log_ticks(axis: Any, low: float | None = None, high: float | None = None) -> None:
    """Numbers as people write them on a logarithmic axis: 1, 2 and 5 times powers of ten, or what else fits.

    Args:
        axis: of matplotlib; its limits are set.
        low, high: its limits, where the axis does not know them itself.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

    if low is None or high is None:
        low, high = sorted(axis.get_view_interval())
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _TICK_STEPS:
        ticks = [value for power in powers for step in steps if low <= (value := step * 10.0**power) <= high]
        if _FEWEST_TICKS <= len(ticks) <= _MOST_TICKS:
            break
    else:  # a stretch so short that it is almost linear
        ticks = [value for value in MaxNLocator(_FEWEST_TICKS).tick_values(low, high) if low <= value <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _lines(rows: Sequence[Row]) -> Figure:
    """Time over capacity on logarithmic axes, a line for each engine; images a second on the right."""
    figure = Figure(figsize=(8.4, 5.6))
    axes = figure.subplots()
    colours = _colours(rows)

    def series(row: Row) -> tuple[str, int]:
        return engine_label(row), row.batch

    ordered = sorted((row for row in rows if row.gflop), key=lambda row: (series(row), row.gflop or 0.0))
    for index, ((label, batch), members) in enumerate(groupby(ordered, key=series)):
        points = list(members)
        x = [row.gflop or 0.0 for row in points]
        y = [(row.median_ms or 0.0) / row.batch for row in points]
        text = label + (f", batch {batch}" if batch > 1 else "")
        dashed = "--" if points[0].precision != "float32" else "-"
        marker = _MARKERS[index % len(_MARKERS)]
        axes.plot(x, y, dashed, marker=marker, color=colours[points[0].engine], label=text, markersize=6)
    top = max((row.median_ms or 0.0) / row.batch for row in ordered)
    axes.set(xscale="log", yscale="log", xlabel="GFLOP for each image", ylabel="milliseconds for each image, median")
    axes.set_ylim(top=1.2 * top)
    axes.grid(axis="y")
    for axis in (axes.xaxis, axes.yaxis):
        plain_log_ticks(axis)
    _name_capacities(axes, ordered)
    second = axes.secondary_yaxis("right", functions=(_reciprocal, _reciprocal))
    second.set_ylabel("images a second")
    plain_log_ticks(second.yaxis, *sorted(map(float, _reciprocal(axes.get_ylim()))))
    axes.legend(loc="upper left", bbox_to_anchor=(1.12, 1.0), title=_threads(rows), alignment="left")
    return figure


def _name_capacities(axes: Any, rows: Sequence[Row]) -> None:
    """A line for each network with its name above, names apart so that none is written over another."""
    names = {row.gflop: network_label(row).split(",")[0] for row in rows}
    left, right = (math.log(limit) for limit in axes.get_xlim())
    last = -1.0
    for gflop in sorted(gflop for gflop in names if gflop):
        place = (math.log(gflop) - left) / (right - left)
        axes.axvline(gflop, color="#e4e8ee", linewidth=1, zorder=0)
        last = max(place, last + _NAME_DISTANCE)
        axes.text(last, 1.01, names[gflop], rotation=40, fontsize=8.5, color=_INK, transform=axes.transAxes)


def _reciprocal(values: Any) -> Any:
    import numpy as np

    return 1e3 / np.maximum(values, 1e-9)


def _by_network(rows: Sequence[Row]) -> list[Row]:
    places = {label: index for index, label in enumerate(dict.fromkeys(map(network_label, rows)))}
    return sorted(rows, key=lambda row: places[network_label(row)])


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    names = dict.fromkeys(row.engine for row in rows)
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}


def roofline_figure(row: Row, roof: Roof, layers: Sequence[Layer]) -> Figure:
    """What every layer achieves over its arithmetic intensity, under the roof of this machine.

    The area of a point is its share of the time; the longest are numbered. Layers without arithmetic have no place.
    """
    figure = Figure(figsize=(8.4, 5.4))
    axes = figure.subplots()
    counted = [layer for layer in layers if layer.flops and layer.ms]
    peak, bandwidth = roof.gflops, roof.gigabytes
    left = min([layer.intensity for layer in counted] + [roof.ridge]) / 2
    right = max([layer.intensity for layer in counted] + [roof.ridge]) * 2
    told = f"matrix product {number(peak, 0)} GFLOP/s,\ncopy {number(bandwidth)} GB/s"
    axes.plot([left, roof.ridge, right], [left * bandwidth, peak, peak], color=_INK, label=told)
    for bound, colour in _BOUND_COLOURS.items():
        chosen = [layer for layer in counted if layer.bound == bound]
        areas = [_SMALLEST_AREA + _AREA * layer.share for layer in chosen]
        points = [layer.intensity for layer in chosen], [layer.gflops for layer in chosen]
        axes.scatter(*points, s=areas, color=colour, alpha=0.55, linewidths=0)
        axes.scatter([], [], s=60, color=colour, alpha=0.55, linewidths=0, label=f"bound by {bound}")
    for place, layer in enumerate(sorted(counted, key=lambda layer: -layer.ms)[:_NAMED_LAYERS], 1):
        axes.annotate(str(place), (layer.intensity, layer.gflops), ha="center", va="center", fontsize=8.5)
        axes.plot([], [], " ", label=f"{place}  {layer.name}  {100 * layer.share:.0f} %")
    rest = sum(layer.share for layer in layers if not layer.flops)
    axes.plot([], [], " ", label=f"without arithmetic  {100 * rest:.0f} %")
    axes.set(xscale="log", yscale="log", xlabel="FLOP for each byte moved", ylabel="GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        plain_log_ticks(axis)
    axes.set_title(f"{network_label(row)} in {engine_label(row)}")
    axes.grid(which="major")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), labelspacing=0.7)
    return figure
