"""An answer of the search for people and programs: text, JSON, and a picture of the front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaledyolo.design.capacity import Values, seen
from scaledyolo.design.refine_report import draw_refinement, refinement_document, refinement_table, verdict
from scaledyolo.design.search import Answer, Measured, affordable

_MOST_DOTS: Final = 3000  # predicted networks in the picture
_BLUE, _ORANGE, _GREEN, _GREY, _INK = "#0072b2", "#e69f00", "#009e73", "#8a94a3", "#1f2933"


def document(answer: Answer) -> dict[str, Any]:
    """Plain values of an answer."""
    return {
        "chosen": {"spec": answer.chosen.candidate.spec().to_dict(), **_figures(answer.chosen)},
        "front": [{"name": one.candidate.name, **_figures(one)} for one in answer.front],
        "predictor_error": round(answer.model.held_out_error, 4),
        "seconds": round(answer.seconds, 2),
        "finalist_error": round(answer.finalist_error, 4),
        "budget": {"kind": answer.budget.kind, "limit": answer.budget.limit},
        "candidates": len(answer.table.candidates),
        "costing_seconds": round(answer.costing_seconds, 2),
        "device": answer.device.to_dict(),
        **({"refinement": refinement_document(answer.refinement)} if answer.refinement is not None else {}),
    }


def _figures(one: Measured) -> dict[str, Any]:
    return {
        "size": one.candidate.size,
        "predicted_ms": round(one.predicted_ms, 3),
        "median_ms": round(one.median_ms, 3),
        "p95_ms": round(one.timing.p95_ms, 3),
        "noise": round(one.timing.noise, 4),
        "gflops": round(one.candidate.gflops, 4),
        "params": one.candidate.params,
        "capacity": round(one.capacity, 2),
    }


def text(answer: Answer, boxes: Values) -> str:
    """The answer for people: what, the front, and why."""
    chosen = answer.chosen
    lines = [
        str(answer.device),
        f"budget: {answer.budget}",
        "",
        f"  {'network':<38}{'size':>6}{'GFLOP':>9}{'params':>10}{'capacity':>10}{'predicted':>11}{'measured':>17}",
    ]
    lines += [_row(one, chosen) for one in answer.front]
    if chosen not in answer.front:  # possible where time is not the budget
        lines.append(_row(chosen, chosen))
    if answer.refinement is not None:
        lines += ["", *refinement_table(answer.refinement)]
    return "\n".join([*lines, "", *why(answer, boxes)])


def _row(one: Measured, chosen: Measured) -> str:
    spread = f"{one.median_ms:.1f} ms ±{50 * one.timing.noise:.0f} %"
    return (
        f"{'*' if one is chosen else ' '} {one.candidate.name:<38}{one.candidate.size:>6}"
        f"{one.candidate.gflops:>9.2f}{one.candidate.params / 1e6:>9.2f}M{one.capacity:>10.1f}"
        f"{one.predicted_ms:>8.1f} ms{spread:>17}"
    )


def why(answer: Answer, boxes: Values) -> list[str]:
    """The reasons in words, a sentence or two a line."""
    chosen, model = answer.chosen, answer.model
    network, size = chosen.candidate.network, chosen.candidate.size
    lines = [
        f"{chosen.candidate.name} was chosen: {_reason(answer)}",
        (
            f"It is one of {len(answer.table.candidates):,} networks whose cost was computed in "
            f"{answer.costing_seconds:.1f} s. Times were predicted within {100 * model.held_out_error:.1f} % "
            f"(mean of {model.held_out} networks that the fit of {model.fitted} had not seen, at most "
            f"{100 * model.worst_error:.0f} %; the {len(answer.measured)} measured now were off by "
            f"{100 * answer.finalist_error:.1f} %)."
        ),
        _view(chosen, boxes),
    ]
    if answer.refinement is not None:
        lines[1:1] = verdict(answer.refinement)
    better = _next_better(answer)
    if better is not None:
        lines.append(
            f"The next more capable that was measured, {better.candidate.name}, takes {better.median_ms:.1f} ms."
        )
    lines.append(
        f"Capacity orders networks by what they can see and how much they work on it (yolov4-csp at 640 is 100); it is "
        f"no accuracy. {network.spec.name} at {size} still has to be trained."
    )
    return lines


def _reason(answer: Answer) -> str:
    chosen = answer.chosen
    if answer.refinement is not None and answer.refinement.chosen is not None:
        return (
            f"within {answer.budget} the best AP of {len(answer.refinement.entrants)} networks that were trained "
            f"briefly on the data: median {chosen.median_ms:.1f} ms, letterbox and suppression included."
        )
    if answer.budget.kind == "latency":
        return (
            f"the most capable that was measured within {answer.budget.limit:.1f} ms, noise included: "
            f"median {chosen.median_ms:.1f} ms, three of four images within {chosen.upper_ms:.1f} ms, "
            "letterbox and suppression included."
        )
    return (
        f"of the most capable within {answer.budget}, the fastest: median {chosen.median_ms:.1f} ms, "
        "letterbox and suppression included."
    )


def _view(chosen: Measured, boxes: Values) -> str:
    network, size = chosen.candidate.network, chosen.candidate.size
    finest = network.profile.strides[0]
    share = seen(boxes, size, finest, network.receptive_field)
    middle = float(np.sqrt(np.median(boxes.prod(axis=1)))) * size
    return (
        f"Its cells are {finest} pixels at the finest and see {network.receptive_field} pixels at the coarsest; at "
        f"{size} pixels half of the boxes are larger than {middle:.0f}, the largest is {boxes.max() * size:.0f}; "
        f"{100 * share:.0f} % of the boxes counts as seen."
    )


def _next_better(answer: Answer) -> Measured | None:
    better = [one for one in answer.measured if one.capacity > answer.chosen.capacity]
    return min(better, key=lambda one: one.median_ms, default=None)


def draw(answer: Answer, path: Path) -> None:
    """The picture: every network by predicted time, those measured, their front, the budget and the choice.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from scaledyolo.bench.plot import STYLE, plain_log_ticks
    from scaledyolo.files import output_errors

    with rc_context(STYLE):
        refined = answer.refinement if answer.refinement is not None and any(answer.refinement.outcomes) else None
        figure = Figure(figsize=(8.2, 5.2 if refined is None else 9.4), layout="constrained")
        axes, *below = figure.subplots(1 if refined is None else 2, 1, squeeze=False).flat
        _draw_predicted(axes, answer)
        _draw_measured(axes, answer)
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
        axes.grid(visible=True)
        axes.set_xlabel("milliseconds for one image, end to end")
        axes.set_ylabel("capacity (yolov4-csp at 640 is 100; no accuracy)")
        axes.set_title(f"{answer.chosen.candidate.name} for {answer.budget}")
        axes.legend(loc="upper left", markerscale=1.2)
        if refined is not None:
            draw_refinement(below[0], refined)
        figure.supxlabel(str(answer.device), x=0.99, ha="right", fontsize=8, color=_GREY)
        with output_errors(path):
            figure.savefig(path, dpi=150)


def _draw_predicted(axes: Any, answer: Answer) -> None:
    """A dot for each network; where the budget is none of time, those that keep it stand out."""
    table, count = answer.table, len(answer.table.candidates)
    shown = np.linspace(0, count - 1, min(count, _MOST_DOTS)).astype(int)
    groups = [(shown, _GREY, 0.35, f"predicted ({count:,} networks)")]
    if answer.budget.kind != "latency":
        kept = affordable(table.candidates, answer.budget, answer.device)
        within, beyond = shown[kept[shown]], shown[~kept[shown]]
        groups = [
            (beyond, _GREY, 0.25, f"predicted, beyond {answer.budget} ({count - int(kept.sum()):,})"),
            (within, _ORANGE, 0.7, f"predicted, within it ({int(kept.sum()):,})"),
        ]
    for rows, colour, opacity, label in groups:
        axes.scatter(
            table.predicted_ms[rows], table.capacity[rows], s=6, color=colour, alpha=opacity, linewidths=0, label=label
        )


def _draw_measured(axes: Any, answer: Answer) -> None:
    others = [one for one in answer.measured if one not in answer.front]
    if others:
        axes.scatter(*_points(others), s=30, facecolors="white", edgecolors=_BLUE, zorder=3, label="measured")
    times, values = _points(answer.front)
    axes.plot(times, values, "-o", color=_BLUE, markersize=6, zorder=4, label="front of those measured")
    low = [one.median_ms - float(np.quantile(one.timing.samples_ms, 0.05)) for one in answer.front]
    high = [max(one.timing.p95_ms - one.median_ms, 0) for one in answer.front]
    axes.errorbar(times, values, xerr=(low, high), fmt="none", ecolor=_BLUE, elinewidth=1, capsize=2, zorder=3)
    if answer.budget.kind == "latency":
        axes.axvline(answer.budget.limit, color=_ORANGE, linestyle="--", linewidth=1.5, label="budget")
    chosen = answer.chosen
    axes.scatter(
        [chosen.median_ms], [chosen.capacity], s=190, marker="*", color=_GREEN, edgecolors=_INK, linewidths=0.6,
        zorder=5, label="chosen",
    )  # fmt: skip


def _points(measured: Sequence[Measured]) -> tuple[list[float], list[float]]:
    return [one.median_ms for one in measured], [one.capacity for one in measured]
