"""The report of a verification, as values and as the JSON file beside the artefact."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from scaledyolo import __version__
from scaledyolo.artefact import Quantisation
from scaledyolo.errors import FormatError
from scaledyolo.export.compare import BoxErrors, MapErrors, Tolerance
from scaledyolo.files import atomic_file
from scaledyolo.host import processor_name

MAX_AP_DROP: Final = 1.0  # points of AP; what is commonly accepted for 8 bits
FINE_TUNING: Final = "`scaledyolo train --data DATA --weights MODEL --recipe int8`"
REPORT_SUFFIX: Final = ".verified.json"
FORMAT: Final = "scaledyolo-verification/2"
_REPORT_KEYS: Final = frozenset(("passed", "date", "digest", "reference", "checks"))


@dataclass(frozen=True, slots=True)
class Case:
    """One batch that went through both networks."""

    batch: int
    height: int
    width: int
    maps: tuple[MapErrors, ...]  # empty for end-to-end graphs, which have none
    boxes: BoxErrors

    def within(self, tolerance: Tolerance) -> bool:
        """Whether every map and enough boxes agree."""
        return self.boxes.within(tolerance) and all(item.within(tolerance) for item in self.maps)


@dataclass(frozen=True, slots=True)
class ApDifference:
    """Average precision (0 to 1) of both networks on a data set."""

    dataset: str
    images: int
    expected: float
    found: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether they differ by little enough."""
        won = 100 * (self.found - self.expected)
        return -tolerance.ap_points <= won and (tolerance.may_win or won <= tolerance.ap_points)


@dataclass(frozen=True, kw_only=True)
class RuntimeCheck:
    """What one runtime made of the artefact."""

    engine: str  # with version, device and precision
    tolerance_name: str
    tolerance: Tolerance
    cases: tuple[Case, ...]
    ap: ApDifference | None = None

    @property
    def passed(self) -> bool:
        """Whether everything that was compared agrees within the tolerance."""
        cases = all(case.within(self.tolerance) for case in self.cases)
        return bool(self.cases) and cases and (self.ap is None or self.ap.within(self.tolerance))

    @property
    def worst_error(self) -> float:
        """Largest difference of any raw map, in standard deviations of that map; 0 where there are no maps."""
        return max((item.max_relative for case in self.cases for item in case.maps), default=0.0)

    @property
    def boxes(self) -> tuple[int, int]:
        """Boxes matched and compared, over all cases."""
        return sum(case.boxes.matched for case in self.cases), sum(case.boxes.compared for case in self.cases)

    def summary(self) -> str:
        """One line for people."""
        matched, compared = self.boxes
        parts = [f"{matched} of {compared} boxes match"]
        if any(case.maps for case in self.cases):
            parts.insert(0, f"largest error {self.worst_error:.1e} of the spread of its map")
        if self.ap is not None:
            parts.append(f"AP {100 * self.ap.found:.2f} against {100 * self.ap.expected:.2f}")
        return f"{self.engine}: {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """What was compared with what, where, and with which result: one check for each runtime that may run the file."""

    artefact: str  # its file name
    format: str
    digest: str  # SHA-256 of the network's files
    reference: str  # what computed the expected maps, with version, device and precision
    differences: tuple[str, ...]  # where the artefact's metadata contradicts the model, in words
    checks: tuple[RuntimeCheck, ...]
    quantisation: Quantisation | None = None  # of an artefact in 8 bits

    @property
    def passed(self) -> bool:
        """Whether the metadata is right and everything that was compared agrees, in every runtime."""
        return bool(self.checks) and not self.differences and all(check.passed for check in self.checks)

    @property
    def worst_error(self) -> float:
        """The largest of all runtimes; see :class:`RuntimeCheck`."""
        return max((check.worst_error for check in self.checks), default=0.0)

    @property
    def boxes(self) -> tuple[int, int]:
        """Boxes matched and compared, over all runtimes and cases."""
        return sum(check.boxes[0] for check in self.checks), sum(check.boxes[1] for check in self.checks)

    @property
    def cases(self) -> tuple[Case, ...]:
        """Those of all runtimes."""
        return tuple(case for check in self.checks for case in check.cases)

    @property
    def advice(self) -> str:
        """What to do about 8 bits that cost more AP than is commonly accepted; empty where they do not, or it was done.

        It counts what all layers in 8 bits cost, whether or not some of them have returned to float since.
        """
        facts = self.quantisation
        if facts is None or facts.trained_for:
            return ""
        measured = [100 * (check.ap.expected - check.ap.found) for check in self.checks if check.ap is not None]
        loss = max([facts.full_ap_drop or 0.0, *measured])
        if loss <= MAX_AP_DROP:
            return ""
        return f"8 bits cost {loss:.2f} points of AP; {FINE_TUNING} makes the network lose less, then export it again"

    def summary(self) -> str:
        """A few lines for people: the verdict, what the metadata says wrongly, each runtime, and advice."""
        verdict = "verified" if self.passed else "UNVERIFIED"
        lines = [f"{self.artefact}: {verdict} against {self.reference}"]
        lines += [f"  {item}" for item in self.differences]
        lines += [f"  {'' if check.passed else 'DIFFERS in '}{check.summary()}" for check in self.checks]
        return "\n".join([*lines, *([f"  {self.advice}"] if self.advice else [])])

    def to_dict(self) -> dict[str, Any]:
        """Plain values; infinite errors become null."""
        values = {
            "report": FORMAT,
            "passed": self.passed,
            "advice": self.advice,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "scaledyolo": __version__,
            **{item.name: getattr(self, item.name) for item in dataclasses.fields(self)},
            "machine": machine(),
        }
        plain: dict[str, Any] = _plain(values)
        return plain

    def save(self, path: Path) -> None:
        """Write the JSON file, atomically."""
        with atomic_file(path) as temporary:
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")


def report_path(artefact: Path) -> Path:
    """The report's place beside its artefact."""
    return artefact.with_name(artefact.name + REPORT_SUFFIX)


def read_report(path: Path) -> dict[str, Any] | None:
    """The report at a place as plain values; None where there is none.

    Raises:
        FormatError: it is damaged, or no report.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: a damaged report ({error}); verify the artefact with --against MODEL") from None
    if not isinstance(values, dict) or values.get("report") != FORMAT or not values.keys() >= _REPORT_KEYS:
        raise FormatError(f"{path}: not a report of this version; verify the artefact with --against MODEL")
    return values


def machine() -> dict[str, Any]:
    """What a runtime's results may depend on; nothing that names the machine or its user."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
