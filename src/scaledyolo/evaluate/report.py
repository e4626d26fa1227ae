"""The evaluation report: one HTML page that needs nothing from elsewhere, and the same figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from math import isnan
from pathlib import Path
from string import Template

import numpy as np

from scaledyolo.evaluate import plots
from scaledyolo.evaluate.analysis import Analysis
from scaledyolo.evaluate.arrays import GroundTruth, Predictions
from scaledyolo.evaluate.bootstrap import Interval, PairedComparison, PairedDifference
from scaledyolo.evaluate.curves import OperatingPoint
from scaledyolo.evaluate.error_types import DESCRIPTIONS, ERRORS
from scaledyolo.evaluate.gallery import LoadImage, picture_gallery
from scaledyolo.evaluate.markup import (
    Cell,
    Html,
    bar,
    cards,
    contents,
    count,
    details,
    number,
    pair,
    paragraph,
    safe,
    section,
    svg_figure,
    table,
    words,
)
from scaledyolo.evaluate.report_json import analysis_as_json

_TARGETS = (0.5, 0.75, 0.9, 0.95)  # of precision and recall, in the table of thresholds

_MEANINGS = (
    "precision, mean of IoU 0.50 to 0.95",
    "precision at IoU 0.50",
    "precision at IoU 0.75",
    "objects up to 32² pixels",
    "32² to 96² pixels",
    "above 96² pixels",
    "recall with 1 detection per image and class",
    "with 10",
    "with 100",
    "objects up to 32² pixels",
    "32² to 96² pixels",
    "above 96² pixels",
)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What surrounds the figures."""

    title: str = "Evaluation"
    details: Mapping[str, str] = field(default_factory=dict)  # name and value, e.g. checkpoint, size, command
    num_worst_images: int = 24
    compared_with: str = "the other model"  # what the first side of a comparison is called


def write_report(
    folder: Path,
    analysis: Analysis,
    truth: GroundTruth,
    predictions: Predictions,
    *,
    options: ReportOptions | None = None,
    load_image: LoadImage | None = None,
    comparison: PairedComparison | None = None,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.json`` into a folder (made if need be) and return their paths.

    Args:
        folder: where to.
        analysis: the result of :func:`scaledyolo.evaluate.analysis.analyse` for ``truth`` and ``predictions``.
        truth: what there is.
        predictions: what was detected.
        options: title, details, number of pictures.
        load_image: gives image i as RGB uint8 (height, width, 3); without it the page has no pictures.
        comparison: with another model, which is its first side; this one is the second.
    """
    chosen = options or ReportOptions()
    folder.mkdir(parents=True, exist_ok=True)
    page, figures = folder / "report.html", folder / "report.json"
    html = report_html(analysis, truth, predictions, options=chosen, load_image=load_image, comparison=comparison)
    page.write_text(html, encoding="utf-8")
    content = {"title": chosen.title, "details": dict(chosen.details), **analysis_as_json(analysis, truth, comparison)}
    figures.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return page, figures


def report_html(
    analysis: Analysis,
    truth: GroundTruth,
    predictions: Predictions,
    *,
    options: ReportOptions | None = None,
    load_image: LoadImage | None = None,
    comparison: PairedComparison | None = None,
) -> str:
    """The page as text; arguments as for :func:`write_report`."""
    chosen = options or ReportOptions()
    parts: dict[str, list[str]] = {
        "Summary": _summary(analysis, truth),
        "Comparison": _comparison(comparison, analysis, chosen) if comparison else [],
        "Classes": _classes(analysis, truth),
        "Curves": _curves(analysis),
        "Thresholds": _thresholds(analysis),
        "Errors": _errors(analysis),
        "Confusion": _confusion(analysis),
        "Size and shape": _breakdown(analysis),
        "Calibration": _calibration(analysis),
        "Worst images": _pictures(analysis, truth, predictions, chosen, load_image) if load_image else [],
        "How to read this": [_glossary(analysis)],
    }
    shown = {title: content for title, content in parts.items() if content}
    template = Template(files("scaledyolo.evaluate").joinpath("report_page.html").read_text(encoding="utf-8"))
    facts = {
        "protocol": analysis.protocol.name,
        "images": str(truth.num_images),
        "objects": str(int(truth.class_counts().sum())),
        "classes": str(truth.num_classes),
        "detections": str(len(predictions)),
    }
    return template.substitute(
        title=safe(chosen.title),
        details=details({**chosen.details, **facts}),
        contents=contents(list(shown)),
        sections="\n".join(section(title, *content) for title, content in shown.items()),
    )


def _figure(value: float) -> str:
    return "–" if isnan(value) else f"{value:.3f}"


def _range(interval: Interval | None) -> str:
    return "" if interval is None or isnan(interval.low) else f"{interval.low:.3f} to {interval.high:.3f}"


def _summary(analysis: Analysis, truth: GroundTruth) -> list[str]:
    coco, intervals = analysis.coco, analysis.intervals
    ap, ap50, ap75 = (intervals.ap, intervals.ap50, intervals.ap75) if intervals else (None, None, None)
    best = analysis.curves.best_f1()
    darknet = [("mAP50, Darknet", _figure(analysis.ap50_area), "exact area under the curve")]
    headline = cards(
        [
            *(darknet if analysis.protocol.interpolation == "area" else []),
            ("AP", _figure(coco.ap), _range(ap) or "IoU 0.50 to 0.95"),
            ("AP50", _figure(coco.ap50), _range(ap50) or "IoU 0.50"),
            ("AP75", _figure(coco.ap75), _range(ap75) or "IoU 0.75"),
            ("AP small", _figure(coco.ap_small), "below 32² px"),
            ("AP medium", _figure(coco.ap_medium), "32² to 96² px"),
            ("AP large", _figure(coco.ap_large), "above 96² px"),
            ("AR 100", _figure(coco.ar_100), "recall, IoU 0.50 to 0.95"),
            ("best F1", _figure(best.f1), f"at confidence {best.confidence:.3f}"),
        ]
    )
    note = ""
    if intervals is not None:
        note = (
            f"Ranges are {intervals.level:.0%} confidence intervals: {truth.num_images} images were drawn again, with "
            f"replacement, {intervals.num_resamples} times."
        )
    figures = coco.figures()
    return [
        headline,
        paragraph(note) if note else Html(""),
        _twelve_figures(figures),
    ]


def _twelve_figures(figures: Mapping[str, float]) -> Html:
    rows = [
        [Cell(name.replace("_", " ")), number(value), words(meaning)]
        for (name, value), meaning in zip(figures.items(), _MEANINGS, strict=True)
    ]
    return pair(*(table(["figure", "value", "of"], part) for part in (rows[:6], rows[6:])))


def _comparison(comparison: PairedComparison, analysis: Analysis, options: ReportOptions) -> list[str]:
    sides = [("AP", comparison.ap), ("AP50", comparison.ap50), ("AP75", comparison.ap75)]
    verdict = _verdict(comparison.ap, options.compared_with)
    named = zip(analysis.coco.class_names, comparison.class_ap, strict=True)
    classes = [(name, one) for name, one in named if not isnan(one.difference.value)]
    classes.sort(key=lambda item: -abs(item[1].difference.value))
    head = [options.compared_with, "this model", "difference", f"{comparison.level:.0%} interval", "p"]
    explanation = f"Both were judged on the same {comparison.num_resamples} resamples of the images."
    parts: list[str] = [paragraph(verdict), paragraph(explanation)]
    parts.append(table(["", *head], [_difference_row(name, one) for name, one in sides]))
    if len(classes) > 1:
        rows = [_difference_row(name, one) for name, one in classes]
        parts += [Html("<h3>By class</h3>"), table(["class", *head], rows, sortable=True)]
    return parts


def _verdict(ap: PairedDifference, other: str) -> str:
    if isnan(ap.p_value):
        return "There is nothing to compare."
    if not ap.significant:
        return f"No difference in AP to {other} that chance would not explain (p = {ap.p_value:.3f})."
    better = "better" if ap.difference.value > 0 else "worse"
    return f"AP is {abs(ap.difference.value):.3f} {better} than that of {other} (p = {ap.p_value:.3f})."


def _difference_row(name: str, one: PairedDifference) -> list[Cell]:
    kind = ("good" if one.difference.value > 0 else "bad") if one.significant else ""
    shown = "–" if isnan(one.difference.value) else f"{one.difference.value:+.3f}"
    difference = Cell(Html(f'<span class="{kind}">{shown}</span>'), _sort_key(one.difference.value))
    interval = "" if isnan(one.difference.low) else f"{one.difference.low:+.3f} to {one.difference.high:+.3f}"
    return [Cell(name), number(one.first), number(one.second), difference, Cell(interval), number(one.p_value)]


def _sort_key(value: float) -> float:
    return -2.0 if isnan(value) else value


def _classes(analysis: Analysis, truth: GroundTruth) -> list[str]:
    counts = truth.class_counts()
    coco, curves = analysis.coco, analysis.curves
    unknown = Interval(float("nan"), float("nan"), float("nan"))
    rows = []
    for class_id in np.argsort(-counts, kind="stable"):
        interval = analysis.intervals.class_ap[class_id] if analysis.intervals else unknown
        best = curves.best_f1(int(class_id))
        ap = float(coco.class_ap[class_id])
        rows.append(
            [
                Cell(coco.class_names[class_id]),
                count(int(counts[class_id])),
                number(ap),
                bar(ap, interval.low, interval.high),
                number(float(coco.class_ap50[class_id])),
                number(float(coco.class_ar[class_id])),
                number(best.f1),
                number(best.confidence if counts[class_id] else float("nan")),
            ]
        )
    head = ["class", "objects", "AP", "interval", "AP50", "AR 100", "best F1", "at confidence"]
    return [table(head, rows, sortable=True)]


def _curves(analysis: Analysis) -> list[str]:
    first = svg_figure(plots.precision_recall_plot(analysis.coco), "precision against recall")
    second = svg_figure(
        plots.confidence_plot(analysis.curves, analysis.coco.class_names), "precision, recall and F1 against confidence"
    )
    return [pair(first, second)]


def _thresholds(analysis: Analysis) -> list[str]:
    curves = analysis.curves
    mean_best = float(curves.confidences[int(np.argmax(np.nan_to_num(curves.mean_f1)))])
    rows = [
        _threshold_row("best F1, all objects alike", curves.best_f1()),
        _threshold_row("best F1, all classes alike", curves.at(mean_best)),
        _threshold_row("usual for pictures", curves.at(0.25)),
        *(_threshold_row(f"precision at least {target:g}", curves.for_precision(target)) for target in _TARGETS),
        *(_threshold_row(f"recall at least {target:g}", curves.for_recall(target)) for target in _TARGETS),
    ]
    return [
        paragraph(f"Choose by what a mistake costs. Counted at IoU {curves.iou:g}, all classes together."),
        table(["aim", "confidence", "precision", "recall", "F1"], rows),
    ]


def _threshold_row(aim: str, point: OperatingPoint | None) -> list[Cell]:
    if point is None:
        return [words(aim), Cell("not reached"), Cell("–"), Cell("–"), Cell("–")]
    return [words(aim), number(point.confidence), number(point.precision), number(point.recall), number(point.f1)]


def _errors(analysis: Analysis) -> list[str]:
    errors = analysis.errors
    found = (
        f"{errors.num_correct} of {errors.num_objects} objects found at confidence {errors.confidence:g} and IoU "
        f"{errors.iou:g}. The second plot shows what AP{errors.iou * 100:.0f} ({_figure(errors.ap)} now) would gain if "
        "errors of one type were mended; gains do not add up."
    )
    rows = [
        [words(kind.name.lower()), count(errors.counts[kind]), number(errors.delta_ap[kind]), words(DESCRIPTIONS[kind])]
        for kind in ERRORS
    ]
    head = ["type", "count", f"gain in AP{errors.iou * 100:.0f}", "meaning"]
    return [
        paragraph(found),
        pair(
            svg_figure(plots.error_count_plot(errors), "number of errors of each type"),
            svg_figure(plots.error_gain_plot(errors), "gain from mending each type"),
        ),
        table(head, rows),
    ]


def _confusion(analysis: Analysis) -> list[str]:
    matrix = analysis.confusion
    intro = paragraph(
        f"Detections with confidence {matrix.confidence:g} or more, paired with objects by IoU above {matrix.iou:g}. "
        "Colour is the share of the true class; the last row is detections of nothing, the last column what was missed."
    )
    plot = svg_figure(plots.confusion_plot(matrix), "confusion matrix")
    rows = [
        [words(one.true_name), words(one.predicted_name), count(one.count), Cell(f"{one.share:.1%}", one.share)]
        for one in matrix.largest_confusions(12)
    ]
    if not rows:
        return [intro, Html(f'<div class="narrow">{plot}</div>'), paragraph("No class was taken for another.")]
    return [intro, pair(plot, table(["true", "taken for", "times", "share"], rows, sortable=True))]


def _breakdown(analysis: Analysis) -> list[str]:
    by_size = svg_figure(plots.bucket_plot(analysis.sizes), "AP by size")
    by_aspect = svg_figure(plots.bucket_plot(analysis.aspects), "AP by aspect ratio")
    return [
        pair(
            Html(f"<h3>Size: square root of the area, original pixels</h3>{by_size}"),
            Html(f"<h3>Shape: width to height</h3>{by_aspect}"),
        )
    ]


def _calibration(analysis: Analysis) -> list[str]:
    error = analysis.calibration.expected_error
    text = (
        f"On average a confidence is off by {_figure(error)} (expected calibration error at IoU 0.5, detections from "
        "0.05). Bars below the dashed line: the detector is too sure of itself; above it: too modest."
    )
    plot = svg_figure(plots.calibration_plot(analysis.calibration), "reliability of the confidences")
    return [paragraph(text), Html(f'<div class="half">{plot}</div>')]


def _pictures(
    analysis: Analysis, truth: GroundTruth, predictions: Predictions, options: ReportOptions, load_image: LoadImage
) -> list[str]:
    worst = analysis.worst_images[: options.num_worst_images]
    if not worst:
        return [paragraph("No image has a mistake at this confidence.")]
    names = {
        "found": "object, found",
        "missed": "object, missed",
        "right": "detection, right",
        "wrong": "detection, wrong",
    }
    key = "".join(
        f'<span><svg viewBox="0 0 22 16"><rect class="{kind}" x="2" y="2" width="18" height="12"/></svg>{name}</span>'
        for kind, name in names.items()
    )
    text = (
        f"Ordered by missed objects plus the confidences of wrong detections, at confidence "
        f"{analysis.errors.confidence:g}; {len(analysis.worst_images)} of {truth.num_images} images have a mistake."
    )
    gallery = picture_gallery(worst, truth, predictions, analysis.matching, analysis.errors, load_image)
    return [paragraph(text), Html(f'<div class="key">{key}</div><div class="photos">{gallery}</div>')]


def _glossary(analysis: Analysis) -> Html:
    protocol = analysis.protocol
    entries = {
        "AP": "Average precision, COCO's: mean over IoU 0.50, 0.55, ... 0.95 and over the classes that occur.",
        "AP50, AP75": "The same at one IoU. AP50 forgives loose boxes, AP75 does not.",
        "AR 100": "Share of objects found with up to 100 detections per image and class, mean over the same IoUs.",
        "F1": "Harmonic mean of precision (share of detections that are right) and recall (share of objects found).",
        "Confidence interval": "Percentiles of the bootstrap over images, centred on the figure.",
        "p": "How often the bootstrap of the difference falls on the other side of zero, twice (two-sided).",
        "Error types": "TIDE (Bolya et al., ECCV 2020), foreground IoU "
        f"{analysis.errors.iou:g}, background IoU {analysis.errors.background_iou:g}.",
        "Protocol": f"{protocol.name}: confidence from {protocol.confidence:g}, NMS at IoU {protocol.nms_iou:g}, up to "
        f"{protocol.max_detections} detections per image, the best {protocol.scored_detections} per class scored.",
    }
    return Html("<dl>" + "".join(f"<dt>{safe(a)}</dt><dd>{safe(b)}</dd>" for a, b in entries.items()) + "</dl>")
