"""What short trainings found, for people and programs: a table, sentences, JSON, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from scaledyolo.design.refine import Outcome, Refinement
from scaledyolo.errors import counted
from scaledyolo.evaluate.bootstrap import PairedDifference

_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
_CAVEAT: Final = (
    "Noise is that of the validation images alone (95 %, the same resamples for all). Another seed moves AP too, and "
    "networks trained this briefly need not finish in this order: short trainings favour small networks."
)


def refinement_table(found: Refinement) -> list[str]:
    """A line for each network that was trained, the best of the longest first."""
    rungs = () if found.plan is None else found.plan.epochs
    head = f"  {'trained on the data':<38}{'epochs':>6}{'seconds':>9}"
    lines = [head + "".join(f"{f'AP after {epochs}':>13}" for epochs in rungs) + "  95 % of its last"]
    for row in _ranked(found):
        outcomes = found.outcomes[row]
        reached = {outcome.epochs: outcome for outcome in outcomes}
        star = "*" if row == found.chosen else " "
        seconds = sum(outcome.seconds for outcome in outcomes)
        line = f"{star} {found.entrants[row].name:<38}{outcomes[-1].epochs:>6}{seconds:>9.0f}"
        line += "".join(f"{_figure(reached.get(epochs)):>13}" for epochs in rungs)
        interval = outcomes[-1].interval
        line += "" if math.isnan(interval.low) else f"  [{interval.low:.3f}, {interval.high:.3f}]"
        lines.append(line.rstrip())
    return lines


def _ranked(found: Refinement) -> list[int]:
    """Positions of the networks with an outcome."""
    known = [row for row, outcomes in enumerate(found.outcomes) if outcomes]
    return sorted(known, key=lambda row: (-found.outcomes[row][-1].epochs, -found.outcomes[row][-1].reported, row))


def _figure(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    return "diverged" if outcome.ap is None else f"{outcome.ap:.3f}"


def verdict(found: Refinement) -> list[str]:
    """What follows from the trainings, and what does not, a sentence or two a line."""
    if found.state == "interrupted":
        return [f"The short trainings were interrupted, so capacity chose; the same command goes on in {found.folder}."]
    if found.chosen is None:
        return ["No network had learnt to find anything when the time was up, so capacity chose; give --refine more."]
    chosen = found.entrants[found.chosen]
    last = found.outcomes[found.chosen][-1]
    images = found.facts["images"]
    how = f"recipe {found.facts['recipe']['name']}, seed {found.facts['seed']}"
    trained = f"after {counted(last.epochs, 'epoch')} from scratch on {images['train']:,} others ({how})"
    lines = [f"Its AP is {last.interval} on {counted(images['val'], 'image')}, {trained}."]
    if found.state == "time":
        lines.append("A longer rung was not begun, for it would not have ended in the minutes that were given.")
    lines += _comparisons(found, found.chosen)
    if found.by_capacity is not chosen.measured:
        lines.append(f"By capacity alone {found.by_capacity.candidate.name} would have been chosen.")
    return [*lines, _CAVEAT]


def _comparisons(found: Refinement, chosen: int) -> list[str]:
    """How sure it is that the choice is better than each of those trained as long, and than that of capacity."""
    longest = found.outcomes[chosen][-1].epochs
    rivals = [row for row in _ranked(found) if row != chosen and found.outcomes[row][-1].epochs == longest]
    first = next((row for row, one in enumerate(found.entrants) if one.measured is found.by_capacity), chosen)
    if first not in (chosen, *rivals):
        rivals.append(first)
    lines = []
    for row in rivals:
        difference = found.against(row)
        if difference is None:
            continue
        name, epochs = found.entrants[row].name, found.outcomes[row][-1].epochs
        told = f"Beside {name} after {counted(epochs, 'epoch')} its AP is {_signed(difference)}: "
        if difference.significant:
            lines.append(told + "more than the noise.")
        else:
            lines.append(told + "within the noise; these images cannot tell the two apart, so either will do.")
    return [*lines, *_stopped_in_doubt(found, rivals)]


def _stopped_in_doubt(found: Refinement, told: Sequence[int]) -> list[str]:
    """Networks that were not trained further although, so early, nothing sure could be said about them."""
    pairs = [(row, found.against(row)) for row in _ranked(found) if row not in (*told, found.chosen)]
    names = [found.entrants[row].name for row, pair in pairs if pair is not None and not pair.significant]
    if not names:
        return []
    were = "was stopped early though it" if len(names) == 1 else "were stopped early though they"
    return [f"{', '.join(names)} {were} lay within the noise then; with more minutes less is decided so early."]


def _signed(difference: PairedDifference) -> str:
    interval = difference.difference
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def refinement_document(found: Refinement) -> dict[str, Any]:
    """Plain values."""
    return {
        "chosen_by": "capacity" if found.chosen is None else "ap",
        "by_capacity": found.by_capacity.candidate.name,
        "state": found.state,
        "minutes": found.facts["minutes"],
        "seconds": round(found.seconds, 2),
        "recipe": found.facts["recipe"]["name"],
        "seed": found.facts["seed"],
        "images": dict(found.facts["images"]),
        "epochs": [] if found.plan is None else list(found.plan.epochs),
        "networks": [_network(found, row) for row in _ranked(found)],
        "folder": str(found.folder),
    }


def _network(found: Refinement, row: int) -> dict[str, Any]:
    entrant, outcomes = found.entrants[row], found.outcomes[row]
    last = outcomes[-1]
    difference = found.against(row) if row != found.chosen else None
    return {
        "name": entrant.name,
        "size": entrant.spec.size,
        "epochs": last.epochs,
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 2),
        "ap": last.ap,
        "ap_interval": [_finite(last.interval.low), _finite(last.interval.high)],
        "ap50": last.ap50,
        "rungs": [{"epochs": one.epochs, "ap": one.ap, "seconds": round(one.seconds, 2)} for one in outcomes],
        # Of the choice over this one; None for the choice itself, and where nothing can be compared.
        "ap_behind": None if difference is None else round(difference.difference.value, 6),
        "within_noise": None if difference is None else not difference.significant,
        **({"failure": last.failure} if last.failure else {}),
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def draw_refinement(axes: Any, found: Refinement) -> None:
    """AP over the epochs of every network that was trained, with the interval of its last."""
    ranked = [row for row in _ranked(found) if found.outcomes[row][0].ap is not None]
    ends = [found.outcomes[row][-1].epochs for row in ranked]
    for place, row in enumerate(ranked):
        # Networks that stopped after the same epoch end side by side, or their bars would cover each other.
        beside = ends[:place].count(ends[place]) - (ends.count(ends[place]) - 1) / 2
        outcomes = [outcome for outcome in found.outcomes[row] if outcome.ap is not None]
        _draw_network(
            axes, found, row, outcomes, colour=_COLOURS[place % len(_COLOURS)], shift=0.012 * beside * max(ends)
        )
    axes.set_xlabel("epochs of training from scratch")
    axes.set_ylabel("AP on the validation images")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True)
    axes.set_title("short trainings on the data; bars: 95 % over images")
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.16), ncols=2)


def _draw_network(
    axes: Any, found: Refinement, row: int, outcomes: Sequence[Outcome], *, colour: str, shift: float
) -> None:
    chosen = row == found.chosen
    epochs = [float(outcome.epochs) for outcome in outcomes]
    epochs[-1] += shift
    values = [outcome.interval.value for outcome in outcomes]
    label = found.entrants[row].name + (" (chosen)" if chosen else "")
    axes.plot(epochs, values, marker="o", markersize=6, color=colour, label=label, zorder=3)
    last = outcomes[-1].interval
    if not math.isnan(last.low):
        axes.vlines(epochs[-1], last.low, last.high, color=colour, linewidth=1.2, zorder=2)
    if chosen:
        axes.plot(epochs[-1], values[-1], marker="*", markersize=15, color=colour, markeredgecolor="#1f2933", zorder=4)
