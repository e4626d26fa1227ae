"""A heat: everybody in turns, round after round, beside a matrix product and a copy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from scaledyolo.arch.roofline import Roof
from scaledyolo.bench.entrants import Entrant, Gemms, Setting, network_job
from scaledyolo.bench.jobs import CopyJob, ProfileJob
from scaledyolo.bench.process import CandidateError, Process, Worker
from scaledyolo.bench.profile import PROFILED_ENGINES
from scaledyolo.bench.roofline import Layer, layers_of
from scaledyolo.bench.rows import Row, measured
from scaledyolo.bench.timing import Interrupted, interleaved_samples
from scaledyolo.errors import ScaledYoloError

_PROFILE_ROUNDS: Final = 10
STOPPED: Final = "stopped before the last round"  # the note of rows that have fewer rounds than were asked for
_Samples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure; see :func:`~scaledyolo.bench.timing.interleaved`."""

    rounds: int
    warmup: int
    seconds: float | None


@dataclass(frozen=True)
class Limits:
    """What the machine did in these rounds, by precision: a second of the median round, and at most."""

    median_gflops: Mapping[str, float]  # to compare with networks, whose times are medians too
    roofs: Mapping[str, Roof]  # of the fastest round; empty where no copy was measured


class _Guarded:
    """A process whose failure ends its part and not the rounds."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.error = ""

    def sample(self) -> Mapping[str, Any]:
        if self.error:
            return {}
        try:
            return self.process.sample()
        except ScaledYoloError as error:
            self.error = str(error)
            return {}


def measure(entrants: Sequence[Entrant], gemms: Gemms, effort: Effort, *, layers: bool, heat: int = 0) -> list[Row]:
    """Start everybody, measure in turns, end everybody.

    Args:
        entrants: who takes part.
        gemms: the matrix products to compare with.
        effort: how long.
        layers: whether to look into the networks afterwards, where an engine tells.
        heat: the number of these rounds, which the rows carry.

    Returns:
        A row for each entrant, in their order; one that failed says why.

    Raises:
        Interrupted: by Ctrl-C; has the rows, of the rounds that were complete, without those that had none.
    """
    rows: dict[int, Row] = {}
    stopped = ""
    with ExitStack() as stack:
        running: dict[int, _Guarded] = {}
        for index, entrant in enumerate(entrants):
            try:
                running[index] = _Guarded(stack.enter_context(contextlib.closing(entrant.start())))
            except ScaledYoloError as error:
                rows[index] = dataclasses.replace(_blank(entrant, heat), error=str(error))
        precisions = {_precision(entrants[index], guarded) for index, guarded in running.items()}
        products = {key: _Guarded(worker) for wanted in precisions for key, worker in gemms.wanted(wanted).items()}
        copy = _start_copy(stack, entrants[0].setting.threads) if layers and running else None
        measures: dict[Any, Callable[[], Mapping[str, Any]]] = {
            key: guarded.sample for key, guarded in (*running.items(), *products.items())
        }
        if copy is not None:
            measures["copy"] = copy.sample
        try:
            samples = interleaved_samples(measures, rounds=effort.rounds, warmup=effort.warmup, seconds=effort.seconds)
        except Interrupted as interruption:
            samples, stopped = interruption.measured, STOPPED
            if not any(samples.values()):
                raise Interrupted([rows[index] for index in sorted(rows)]) from None
        limits = _limits(products, copy, samples)
        for index, guarded in running.items():
            blank = _blank(entrants[index], heat)
            row = _row(blank, entrants[index], guarded, samples[index], limits)
            rows[index] = _noted(row, stopped)
    ordered = [rows[index] for index in range(len(entrants))]
    if stopped:
        raise Interrupted(ordered)
    return _all_with_layers(ordered, entrants, limits) if layers else ordered


def _noted(row: Row, note: str) -> Row:
    """The row with one more note; as it is where there is none."""
    return dataclasses.replace(row, note="; ".join(filter(None, (row.note, note)))) if note else row


def _all_with_layers(rows: list[Row], entrants: Sequence[Entrant], limits: Limits) -> list[Row]:
    """The rows with their layers.

    Raises:
        Interrupted: by Ctrl-C; has all rows, the last of them without layers.
    """
    found = list(rows)
    try:
        for index, entrant in enumerate(entrants):
            found[index] = _with_layers(rows[index], entrant.setting, limits)
    except KeyboardInterrupt:
        raise Interrupted(found) from None
    return found


def _start_copy(stack: ExitStack, threads: int) -> _Guarded:
    return _Guarded(stack.enter_context(contextlib.closing(Worker(CopyJob(threads), threads=threads))))


def _limits(
    products: Mapping[tuple[str, str], _Guarded], copy: _Guarded | None, samples: Mapping[Any, _Samples]
) -> Limits:
    medians: dict[str, float] = {}
    fastest: dict[str, float] = {}
    for (library, precision), guarded in products.items():
        if guarded.error:
            continue
        times = [sample["ms"] for sample in samples[library, precision]]
        flops = guarded.process.facts["flops"]
        # Of several libraries the fastest says what the machine can do.
        medians[precision] = max(flops / median(times) / 1e6, medians.get(precision, 0.0))
        fastest[precision] = max(1e3 * flops / min(times), fastest.get(precision, 0.0))
    if copy is None or copy.error:
        return Limits(medians, {})
    bandwidth = 1e3 * copy.process.facts["bytes"] / min(sample["ms"] for sample in samples["copy"])
    return Limits(medians, {precision: Roof(peak, bandwidth) for precision, peak in fastest.items()})


def _blank(entrant: Entrant, heat: int) -> Row:
    setting, network = entrant.setting, entrant.setting.network
    return Row(
        model=network.name,
        size=(setting.height, setting.width),
        batch=setting.batch,
        engine=entrant.engine,
        precision=entrant.precision,
        end_to_end=entrant.end_to_end,
        device=setting.device,
        threads=setting.threads,
        heat=heat,
        params=network.params,
        note="random weights; the threshold is such that 100 boxes pass it before suppression"
        if network.random and entrant.end_to_end
        else "",
    )


def _precision(entrant: Entrant, guarded: _Guarded) -> str:
    """What it computes in, which those who choose for themselves tell when they run."""
    return str(guarded.process.facts.get("precision", entrant.precision))


def _row(blank: Row, entrant: Entrant, guarded: _Guarded, samples: _Samples, limits: Limits) -> Row:
    if guarded.error:
        return dataclasses.replace(blank, error=guarded.error)
    facts = guarded.process.facts
    row = dataclasses.replace(
        blank,
        engine=facts["engine"],
        version=facts["version"],
        device=facts["device"],
        precision=_precision(entrant, guarded),
        note=facts.get("note", blank.note),
        peak_mb=guarded.process.peak_mb(),
    )
    gflop = entrant.setting.network.gflop(*row.size)
    return measured(row, samples, gflop, limits.median_gflops.get(row.precision))


def _with_layers(row: Row, setting: Setting, limits: Limits) -> Row:
    """The row with its layers, or with a note why there are none."""
    if row.error or row.end_to_end:
        return row
    try:
        roof, layers = _profile(row, setting, limits)
    except ScaledYoloError as error:
        return _noted(row, f"no layers: {error}")
    return dataclasses.replace(row, roof=roof, layers=layers)


def _profile(row: Row, setting: Setting, limits: Limits) -> tuple[Roof, tuple[Layer, ...]]:
    graph, roof = setting.network.graph, limits.roofs.get(row.precision)
    if row.engine not in PROFILED_ENGINES or row.device != "cpu":
        raise CandidateError(f"{row.engine} on {row.device} does not tell the time of each")
    if graph is None:
        raise CandidateError("an exported file does not say what its layers are; profile the model it comes from")
    if roof is None:
        raise CandidateError("the limits of this machine could not be measured")
    job = ProfileJob(network_job(setting, row.engine, row.precision), _PROFILE_ROUNDS)
    with contextlib.closing(Worker(job, threads=setting.threads)) as worker:
        kernels = worker.sample()["kernels"]
    layers = layers_of(
        kernels,
        graph,
        height=setting.height,
        width=setting.width,
        batch=setting.batch,
        precision=row.precision,
        roof=roof,
    )
    return roof, tuple(layers)
