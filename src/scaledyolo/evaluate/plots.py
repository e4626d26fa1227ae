"""Plots of the report, as SVG text. Nothing global of matplotlib is touched: no pyplot, no backend, no rcParams."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from scaledyolo.evaluate.breakdown import BucketAp
from scaledyolo.evaluate.coco import RECALL_POINTS, CocoMetrics
from scaledyolo.evaluate.confusion import ConfusionMatrix
from scaledyolo.evaluate.curves import Calibration, ConfidenceCurves
from scaledyolo.evaluate.error_types import ERRORS, ErrorReport
from scaledyolo.evaluate.markup import shortened

Arguments = ParamSpec("Arguments")

# Okabe and Ito's colours, which people with colour-blindness can tell apart.
BLUE, ORANGE, GREEN, RED, SKY, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#8a94a3"
_ERROR_COLOURS = (SKY, ORANGE, GREEN, GREY, "#cc79a7", RED)
_INK, _FAINT = "#1f2933", "#e4e8ee"
_STYLE = {
    "font.size": 11,
    "axes.edgecolor": "#b8c1cc",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 2.0,
    "svg.hashsalt": "scaledyolo",  # the same figures give the same file
}
_MOST_ANNOTATED_CLASSES = 12
_MOST_NAMED_CLASSES = 40


def _as_svg(draw: Callable[Arguments, Figure]) -> Callable[Arguments, str]:
    """Run a drawing function under the style of the report and return its figure as SVG text."""

    @wraps(draw)
    def render(*arguments: Arguments.args, **options: Arguments.kwargs) -> str:
        with rc_context(_STYLE):
            figure = draw(*arguments, **options)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
        return buffer.getvalue().decode()

    return render


def _axes(width: float = 5.4, height: float = 3.9) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


@_as_svg
def precision_recall_plot(coco: CocoMetrics) -> Figure:
    """Interpolated precision against recall, mean over classes, at three IoU thresholds; lines of equal F1 behind."""
    figure, axes = _axes()
    recall = np.linspace(0.01, 1, 200)
    for f1 in (0.2, 0.4, 0.6, 0.8):
        at = recall[recall > f1 / 2 + 1e-3]
        precision = f1 * at / (2 * at - f1)
        axes.plot(at[precision <= 1.02], precision[precision <= 1.02], color=_FAINT, linewidth=1, zorder=1)
        axes.annotate(f"F1 {f1}", (1.0, f1 / (2 - f1)), fontsize=8, color=GREY, ha="right", va="bottom")
    for row, colour in ((0, BLUE), (5, ORANGE), (8, RED)):
        curves = coco.precision[row]
        present = ~np.isnan(curves[0])
        if present.any():
            mean = curves[:, present].mean(axis=1)
            axes.plot(RECALL_POINTS, mean, color=colour, label=f"IoU {0.5 + 0.05 * row:.2f}: {mean.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.03))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0), columnspacing=1.2, handlelength=1.4)
    return figure


@_as_svg
def confidence_plot(curves: ConfidenceCurves, class_names: Sequence[str]) -> Figure:
    """Precision, recall and F1 of all classes together against the threshold; each class's F1 faintly behind."""
    figure, axes = _axes()
    for class_id in np.flatnonzero(curves.num_positives)[: 4 * _MOST_NAMED_CLASSES]:
        axes.plot(curves.confidences, curves.f1[class_id], color=_FAINT, linewidth=1)
    axes.plot(curves.confidences, curves.overall_precision, color=GREEN, label="precision", linewidth=1.5)
    axes.plot(curves.confidences, curves.overall_recall, color=ORANGE, label="recall", linewidth=1.5)
    axes.plot(curves.confidences, curves.overall_f1, color=BLUE, label="F1")
    best = curves.best_f1()
    axes.plot([best.confidence], [best.f1], "o", color=BLUE, markersize=7)
    axes.annotate(
        f"F1 {best.f1:.3f} at {best.confidence:.3f}",
        (best.confidence, best.f1),
        xytext=(8, 8) if best.confidence < 0.6 else (-8, 8),
        textcoords="offset points",
        ha="left" if best.confidence < 0.6 else "right",
        fontsize=9.5,
        color=BLUE,
    )
    note = "; grey: F1 of each class" if len(class_names) > 1 else ""
    axes.set(xlabel=f"confidence threshold{note}", xlim=(0, 1), ylim=(0, 1.03))
    axes.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0))
    return figure


@_as_svg
def error_count_plot(errors: ErrorReport) -> Figure:
    """How many errors of each type there are."""
    values = [float(errors.counts[kind]) for kind in ERRORS]
    return _bars_of_errors(values, f"errors at confidence {errors.confidence:g}", "{:.0f}")


@_as_svg
def error_gain_plot(errors: ErrorReport) -> Figure:
    """What mending each type of error would be worth."""
    values = [errors.delta_ap[kind] for kind in ERRORS]
    return _bars_of_errors(values, f"gain in AP{errors.iou * 100:.0f} if mended", "{:+.3f}")


def _bars_of_errors(values: Sequence[float], title: str, form: str) -> Figure:
    figure, axes = _axes(5.0, 2.9)
    shown = np.nan_to_num(np.asarray(values))
    bars = axes.barh([kind.name.lower() for kind in ERRORS], shown, color=_ERROR_COLOURS, height=0.62)
    axes.bar_label(bars, [form.format(value) for value in shown], padding=4, fontsize=10)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlim(min(0.0, float(shown.min())), max(float(shown.max()) * 1.22, 1e-3))
    axes.grid(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.invert_yaxis()
    return figure


@_as_svg
def confusion_plot(confusion: ConfusionMatrix) -> Figure:
    """Shares of each true class; numbers where there is room for them."""
    count = len(confusion.counts)
    side = float(np.clip(0.52 * count, 4.4, 9.0))
    figure, axes = _axes(side, side)
    shares = confusion.row_shares
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    names = [_label(name) for name in (*confusion.class_names, "background")]
    if count <= _MOST_NAMED_CLASSES + 1:
        axes.set_xticks(range(count), names, rotation=90 if count > 4 or max(map(len, names)) > 10 else 0)
        axes.set_yticks(range(count), names)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0, labelsize=9)
    if count <= _MOST_ANNOTATED_CLASSES + 1:
        for row, column in np.argwhere(confusion.counts > 0):
            dark = shares[row, column] > 0.55
            axes.text(
                column, row, str(confusion.counts[row, column]),
                ha="center", va="center", fontsize=8.5, color="white" if dark else _INK,
            )  # fmt: skip
    return figure


@_as_svg
def bucket_plot(buckets: Sequence[BucketAp]) -> Figure:
    """AP (bar) and AP50 (dot) of each bucket, with the number of objects in it."""
    figure, axes = _axes(5.4, 3.2)
    places = np.arange(len(buckets))
    bars = axes.bar(places, np.nan_to_num([bucket.ap for bucket in buckets]), color=SKY, width=0.6, label="AP")
    axes.plot(places, [bucket.ap50 for bucket in buckets], "o", color=BLUE, markersize=6, label="AP50")
    labels = [f"{bucket.ap:.2f}" if bucket.num_objects else "" for bucket in buckets]
    axes.bar_label(bars, labels, label_type="center", fontsize=9)
    names = [bucket.name.replace(", ", "\n") for bucket in buckets]
    axes.set_xticks(
        places, [f"{name}\nn = {b.num_objects}" for name, b in zip(names, buckets, strict=True)], fontsize=8
    )
    axes.set_ylim(0, 1.0)
    axes.grid(axis="x", visible=False)
    axes.legend(handles=[bars, *axes.lines], loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    return figure


@_as_svg
def calibration_plot(result: Calibration) -> Figure:
    """Share of right detections in each range of confidence; on the diagonal a score means what it says."""
    figure, axes = _axes()
    width = np.diff(result.edges)
    axes.bar(result.edges[:-1], np.nan_to_num(result.accuracy), width=width * 0.94, align="edge", color=SKY)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    for edge, step, accuracy, count in zip(result.edges[:-1], width, result.accuracy, result.counts, strict=True):
        if count:
            axes.text(edge + step / 2, accuracy + 0.015, f"{count}", ha="center", fontsize=8, color=GREY)
    axes.set(xlabel="confidence (number of detections above each bar)", ylabel="share that is right")
    axes.set(xlim=(0, 1), ylim=(0, 1.06))
    return figure


def _label(name: str) -> str:
    # A dollar sign would start mathematics in matplotlib.
    return shortened(name, 18).replace("$", r"\$")
