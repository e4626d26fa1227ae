"""The cells of a grid side by side: a row for each network and recipe, means over seeds, two kinds of doubt.

The *interval* says how far the figure would move on other test images of the same kind: a bootstrap over images of the
mean over the seeds. The *spread* says how far it moves from seed to seed: the standard deviation between them. The
difference to the first row is taken resample by resample, so that what all networks find hard or easy cancels.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaledyolo.evaluate.bootstrap import Interval, PairedDifference, interval_around, paired_difference
from scaledyolo.outputs.files import write_whole
from scaledyolo.train.ablation.run import Result

MARKDOWN_FILE, JSON_FILE, CSV_FILE = "table.md", "table.json", "cells.csv"
_LEGEND = (
    "AP and AP50 are means over the seeds on the test images. In brackets: where 95 % of the means lie when the images "
    "are drawn again. ± seeds: the standard deviation from seed to seed. Against the first: the difference in AP to "
    "the first row on the same draws of images, * where its interval excludes zero. GFLOPs: of one image at that size, "
    "two a multiplication. min: of one training."
)


@dataclass(frozen=True)
class Figure:
    """One figure of a row."""

    interval: Interval  # value: the mean over the seeds
    spread: float | None  # standard deviation over the seeds; None for one seed
    difference: PairedDifference | None  # to the first row with this figure; None for that row itself


@dataclass(frozen=True)
class Row:
    """A network under a recipe, over its seeds."""

    spec: str
    recipe: str
    seeds: tuple[int, ...]  # with figures
    failed_seeds: tuple[int, ...]
    params: int
    gflops: float
    size: int
    minutes: float  # of one training, the mean
    ap: Figure | None  # None where no seed has one
    ap50: Figure | None


def rows_of(results: Sequence[Result]) -> list[Row]:
    """One row for each network and recipe, in the order of the results."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.spec, result.recipe), []).append(result)
    first: dict[str, tuple[float, np.ndarray]] = {}
    rows = []
    for (spec, recipe), group in groups.items():
        good = [result for result in group if result.ap is not None and result.ap50 is not None]
        rows.append(
            Row(
                spec=spec,
                recipe=recipe,
                seeds=tuple(result.seed for result in good),
                failed_seeds=tuple(result.seed for result in group if result not in good),
                params=group[0].params,
                gflops=group[0].gflops,
                size=group[0].size,
                minutes=statistics.fmean(result.minutes for result in group),
                ap=_figure("ap", good, first),
                ap50=_figure("ap50", good, first),
            )
        )
    return rows


def _figure(name: str, group: Sequence[Result], first: dict[str, tuple[float, np.ndarray]]) -> Figure | None:
    """Mean, interval, spread and the difference to the first row, which is remembered in ``first``."""
    if not group:
        return None
    values = [float(getattr(result, name)) for result in group]
    samples = np.mean([getattr(result, f"{name}_samples") for result in group], axis=0)
    mean = statistics.fmean(values)
    base = first.setdefault(name, (mean, samples))
    return Figure(
        interval=interval_around(mean, samples),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        difference=None if base[1] is samples else paired_difference(base[0], mean, samples - base[1]),
    )


def markdown(title: str, about: str, rows: Sequence[Row]) -> str:
    """The table for people, with the legend of its columns."""
    header = (
        "network", "recipe", "size", "params M", "GFLOPs", "AP [95 %]", "± seeds", "against the first", "AP50 [95 %]",
        "min",
    )  # fmt: skip
    lines = [f"# {title}", "", *([about.strip(), ""] if about else []), _line(header)]
    lines.append("| --- | --- |" + " ---: |" * (len(header) - 2))
    lines += [_line(_texts(row)) for row in rows]
    lines += [
        "",
        _LEGEND,
    ]
    return "\n".join(lines) + "\n"


def _texts(row: Row) -> tuple[str, ...]:
    seeds = len(row.seeds) + len(row.failed_seeds)
    spread = "one seed" if seeds == 1 else "-"
    if row.ap is not None and row.ap.spread is not None:
        spread = f"{row.ap.spread:.4f} ({len(row.seeds)})"
    if row.failed_seeds:
        spread += f", {len(row.failed_seeds)} of {seeds} failed"
    difference = row.ap.difference if row.ap is not None else None
    against = "" if difference is None else f"{difference.difference.value:+.4f}{'*' if difference.significant else ''}"
    return (
        row.spec,
        row.recipe,
        str(row.size),
        f"{row.params / 1e6:.3f}",
        f"{row.gflops:.3f}",
        _shown(row.ap),
        spread,
        against,
        _shown(row.ap50),
        f"{row.minutes:.1f}",
    )


def _shown(figure: Figure | None) -> str:
    return "-" if figure is None else str(figure.interval)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cells_csv(results: Sequence[Result]) -> str:
    """One line for each training."""
    columns = (
        "spec", "recipe", "seed", "params", "gflops", "size", "epochs", "best_epoch", "minutes", "ap", "ap50",
        "failure",
    )  # fmt: skip
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(result, column) for column in columns] for result in results)
    return text.getvalue()


def as_dict(title: str, about: str, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, object]:
    """Everything as plain values, but for the resamples."""
    cells = [
        {name: value for name, value in asdict(result).items() if not name.endswith("_samples")} for result in results
    ]
    document = {"name": title, "about": about, "rows": [asdict(row) for row in rows], "cells": cells}
    return {name: _without_nan(value) for name, value in document.items()}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; null stands for what is not defined."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_tables(folder: Path, title: str, about: str, results: Sequence[Result]) -> list[Row]:
    """Write the table as Markdown and JSON and the cells as CSV into ``folder``; returns the rows.

    Raises:
        OutputError: a file cannot be written.
    """
    rows = rows_of(results)
    write_whole(folder / MARKDOWN_FILE, markdown(title, about, rows).encode())
    write_whole(folder / CSV_FILE, cells_csv(results).encode())
    document = as_dict(title, about, rows, results)
    write_whole(folder / JSON_FILE, (json.dumps(document, indent=2) + "\n").encode())
    return rows
