"""What can be said of an artefact whose model is not at hand: is it the file that was verified, and does it run?

The report of its verification, which lies beside it, holds the digest of the file and the engines that agreed with the
model. From this follows whether the file has changed since, and which engines are others than those. Nothing here
replaces the comparison with the model, so nothing is marked and no report is written.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaledyolo.artefact import ModelFacts
from scaledyolo.engines.select import describe_engine
from scaledyolo.errors import ScaledYoloError, UsageError
from scaledyolo.export.compare import Tolerance, compare_map
from scaledyolo.export.formats import Format, find_format, format_of, runtimes_of
from scaledyolo.export.images import Image, verification_images
from scaledyolo.export.reference import Question
from scaledyolo.export.report import read_report, report_path
from scaledyolo.export.verify import artefact_digest, tolerance_of
from scaledyolo.weights import Array

FORMAT: Final = "scaledyolo-recheck/1"


@dataclass(frozen=True, kw_only=True)
class EngineRecheck:
    """What one runtime makes of the artefact today."""

    engine: str  # with version, device and precision; its bare name where it does not run
    then: str  # what it was called in the report; empty where it was not asked then
    problem: str = ""  # why it does not run, or what is wrong with what it puts out

    @property
    def same(self) -> bool:
        """Whether it is the very engine that agreed with the model."""
        return self.engine == self.then

    def summary(self) -> str:
        """One line for people."""
        if self.problem:
            return f"FAILS in {self.engine}: {self.problem}"
        if self.same:
            return f"runs in {self.engine}, as when it was verified"
        return f"runs in {self.engine}, {f'then it was {self.then}' if self.then else 'not asked then'}"


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """What is known of an artefact without its model."""

    artefact: str  # its file name
    reason: str  # why it was not compared
    passed_then: bool  # the verdict of the report
    date: str  # of the report
    reference: str  # what it was compared with then
    unchanged: bool  # whether its files are those of the report, bit by bit
    engines: tuple[EngineRecheck, ...]

    @property
    def nothing_speaks_against_it(self) -> bool:
        """Whether it is unchanged since it was verified and runs everywhere; that is not a verification."""
        return self.passed_then and self.unchanged and not any(engine.problem for engine in self.engines)

    def summary(self) -> str:
        """A few lines for people: what was not done and why, and what was found."""
        verdict = "verified" if self.passed_then else "found to DIFFER from its model"
        state = "unchanged" if self.unchanged else "CHANGED"
        lines = [f"{self.artefact}: not compared ({self.reason})"]
        lines.append(f"  {state} since it was {verdict} on {self.date[:10]} against {self.reference}")
        return "\n".join([*lines, *(f"  {engine.summary()}" for engine in self.engines)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"report": FORMAT, "compared": False, **dataclasses.asdict(self)}


def recheck(
    artefact: str | os.PathLike[str], reason: str, *, images: Sequence[str | Path] = (), engine: str = "auto"
) -> Recheck:
    """Compare an artefact with its report, and run it once in every runtime.

    Args:
        artefact: the file or folder.
        reason: why it cannot be compared with its model, a sentence without its point.
        images: photographs to run it on; by default built-in ones.
        engine: "auto" for all installed runtimes of the format, or one of them.

    Raises:
        UsageError: there is no report beside it, so nothing can be said; ``reason`` comes first.
        ScaledYoloError: the artefact or an image cannot be read.
    """
    path = Path(artefact)
    name = format_of(path)
    form, runtimes = find_format(name), runtimes_of(name, engine)
    facts = form.read(path)
    place = report_path(path)
    report = read_report(place)
    if report is None:
        raise UsageError(f"{reason}; {place.name}, which tells what it was when it was verified, is missing as well")
    photographs = verification_images(images)
    return Recheck(
        artefact=path.name,
        reason=reason,
        passed_then=bool(report["passed"]),
        date=str(report["date"]),
        reference=str(report["reference"]),
        unchanged=artefact_digest(path, name) == report["digest"],
        engines=tuple(_run_engines(path, form, runtimes, facts, photographs, report)),
    )


def _run_engines(
    path: Path,
    form: Format,
    runtimes: Sequence[str],
    facts: ModelFacts,
    images: Sequence[Image],
    report: Mapping[str, Any],
) -> list[EngineRecheck]:
    known = {engine.split()[0]: engine for engine in (str(check["engine"]) for check in report["checks"])}
    question = Question(facts.batch or 1, facts.height, facts.width)
    first: tuple[str, list[Array]] | None = None
    found = []
    for runtime in runtimes:
        try:
            network = form.open(path, runtime)
            outputs = network.run(question.input(images, facts))
        except ScaledYoloError as error:
            found.append(EngineRecheck(engine=runtime, then=known.get(runtime, ""), problem=str(error)))
            continue
        now = describe_engine(network.engine)
        problem = _problem(outputs, first, tolerance_of(network)[1], facts)
        found.append(EngineRecheck(engine=now, then=known.get(now.split()[0], ""), problem=problem))
        first = first or (now, outputs)
    return found


def _problem(
    outputs: Sequence[Array], first: tuple[str, list[Array]] | None, tolerance: Tolerance, facts: ModelFacts
) -> str:
    """What is wrong with the outputs, by themselves or beside those of the first runtime; empty where nothing is."""
    if not all(np.isfinite(values).all() for values in outputs):
        return "its outputs are not all numbers"
    if facts.nms is not None:  # rows have no fixed order to compare them by
        return ""
    if len(outputs) != len(facts.detects):
        return f"it puts out {len(outputs)} maps, the metadata tells of {len(facts.detects)} heads"
    if first is None:
        return ""
    errors = [compare_map("", *pair) for pair in zip(outputs, first[1], strict=True)]
    agree = all(error.within(tolerance) for error in errors)
    return "" if agree else f"its maps are not those of {first[0]}"
