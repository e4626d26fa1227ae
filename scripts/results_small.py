"""`make results-small`: repeat one short training and see whether its accuracy still lies where it lay.

    python scripts/results_small.py                    # one seed, some minutes; exit code 1 out of the band
    python scripts/results_small.py --measure-band     # all seeds; writes results_small.json beside this script

What is trained says benchmarks/grids/results-small.yaml; `scaledyolo ablate` trains and measures it.

The band is the range in which one further seed lies with 99 % probability, if seeds differ as the measured ones do
(prediction interval of a normal distribution with Student's t). A run out of it, above or below, means that the code
learns differently than it did: find out why, then measure the band anew.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml
from run_records import ROOT, RunRecord, data_folder, read_record, scaledyolo
from scipy import stats

from scaledyolo.data.formats import open_dataset
from scaledyolo.errors import FormatError, ScaledYoloError
from scaledyolo.files import atomic_file
from scaledyolo.train.machine import code_fingerprint

BAND_FILE = Path(__file__).with_suffix(".json")
GRID_FILE = ROOT / "benchmarks" / "grids" / "results-small.yaml"
LEAST_SEEDS = 3
PROBABILITY = 0.99
FIGURES = ("ap", "ap50")
EXIT_OUT_OF_BAND, EXIT_ERROR = 1, 2


@dataclass(frozen=True)
class Options:
    """What to do."""

    data: str = "bccd"
    """Data set: a folder below ../shared/data, or a path."""
    measure_band: bool = False
    """Run all seeds of the grid and store what they give as the band; goes on where it was stopped."""
    grid: Path = GRID_FILE
    """What is trained. Its first seed is what is compared with the band of all."""
    band: Path = BAND_FILE
    """Where the band is stored."""
    out: Path = ROOT / "runs" / "results-small"
    """Folder of the runs."""


@dataclass(frozen=True)
class Trained:
    """One seed of the grid, trained and measured on the test images."""

    seed: int
    ap: float
    ap50: float
    minutes: float

    @property
    def figures(self) -> dict[str, float]:
        """As they are stored."""
        return {"ap": round(self.ap, 4), "ap50": round(self.ap50, 4), "minutes": round(self.minutes, 2)}


@dataclass(frozen=True)
class Band:
    """What a figure was for several seeds."""

    values: tuple[float, ...]

    @property
    def margin(self) -> float:
        """Half the width: how far one further seed may lie from the mean."""
        count = len(self.values)
        quantile = float(stats.t.ppf((1 + PROBABILITY) / 2, count - 1))
        return quantile * statistics.stdev(self.values) * math.sqrt(1 + 1 / count)

    @property
    def low(self) -> float:
        """Lower end."""
        return statistics.mean(self.values) - self.margin

    @property
    def high(self) -> float:
        """Upper end."""
        return statistics.mean(self.values) + self.margin

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


def run(grid: Mapping[str, Any], data: Path, folder: Path) -> tuple[list[Trained], RunRecord]:
    """Run the seeds of a grid of one network and one recipe; what is done in ``folder`` is not done again.

    Returns:
        The seeds, and the record of the first run.

    Raises:
        CommandError: a training or measurement is not possible.
        FormatError: a training diverged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "grid.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(dict(grid)), encoding="utf-8")
    told = scaledyolo("ablate", str(folder / "grid.yaml"), "--data", str(data), "--out", str(folder), "--json")
    cells = json.loads(told)["cells"]
    for cell in cells:
        if cell["ap"] is None:
            raise FormatError(f"seed {cell['seed']}: {cell['failure'] or 'nothing to find in the test images'}")
    first = cells[0]
    record = read_record(folder / f"{first['spec']}--{first['recipe']}--seed{first['seed']}")
    return [Trained(cell["seed"], cell["ap"], cell["ap50"], cell["minutes"]) for cell in cells], record


def measure_band(options: Options) -> int:
    """Run all seeds and store their figures."""
    grid, data = read_grid(options.grid), data_folder(options.data)
    if len(grid["seeds"]) < LEAST_SEEDS:
        raise FormatError(f"{options.grid}: a band needs at least {LEAST_SEEDS} seeds, it has {len(grid['seeds'])}")
    # Of other code nothing is taken over.
    trained, record = run(grid, data, options.out / f"band-{code_fingerprint()[:12]}")
    document = {
        "training": deciding(grid),
        "data": fingerprints(data),
        "commit": record.commit,
        "machine": record.machine,
        "seeds": {str(item.seed): item.figures for item in trained},
    }
    with atomic_file(options.band) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for name, band in bands(document).items():
        print(f"{name.upper()}: {', '.join(f'{value:.3f}' for value in band.values)}; band {band}")
    print(f"{options.band}: written")
    return 0


def read_grid(path: Path) -> Mapping[str, Any]:
    """The grid file as plain values; `ablate` checks them.

    Raises:
        FormatError: it cannot be read.
    """
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise FormatError(f"{path}: no readable grid ({' '.join(str(error).split())})") from None


def deciding(grid: Mapping[str, Any]) -> dict[str, Any]:
    """What of a grid decides its figures."""
    return {key: value for key, value in grid.items() if key not in ("seeds", "about", "minutes", "name")}


def fingerprints(data: Path) -> dict[str, str]:
    """What identifies the images and boxes of each split."""
    return {split: open_dataset(data, split).fingerprint for split in ("train", "val", "test")}


def bands(document: Mapping[str, Any]) -> dict[str, Band]:
    """The band of each figure."""
    return {name: Band(tuple(entry[name] for entry in document["seeds"].values())) for name in FIGURES}


def compare(options: Options) -> int:
    """Run one seed and say whether it lies in the band."""
    document, grid, data = read_band(options.band), read_grid(options.grid), data_folder(options.data)
    if document["training"] != deciding(grid):
        raise FormatError(f"{options.band}: measured with another training; measure it anew with --measure-band")
    if document["data"] != fingerprints(data):
        raise FormatError(f"{options.data}: not the images and boxes that the band was measured on")
    folder = options.out / "compared"
    shutil.rmtree(folder, ignore_errors=True)
    (found,), record = run({**grid, "seeds": grid["seeds"][:1]}, data, folder)
    print(f"seed {found.seed}: {found.minutes:.1f} minutes of training on {record.machine}")
    print(f"the band is of commit {document['commit'][:12]} on {document['machine']}")
    verdict = judge(found.figures, bands(document))
    print(verdict)
    return 0 if verdict.startswith("in the band") else EXIT_OUT_OF_BAND


def judge(found: Mapping[str, float], known: Mapping[str, Band]) -> str:
    """One sentence: where the figures lie."""
    outside = [name for name, band in known.items() if not band.low <= found[name] <= band.high]
    words = [f"{name.upper()} {found[name]:.3f} {known[name]}" for name in (outside or known)]
    if not outside:
        return f"in the band: {', '.join(words)}"
    side = "below" if found[outside[0]] < known[outside[0]].low else "above"
    return f"out of the band ({side}): {', '.join(words)}; this code learns differently than that of the band"


def read_band(path: Path) -> Mapping[str, Any]:
    """The stored band.

    Raises:
        FormatError: there is none, or it is damaged.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"training", "data", "commit", "machine", "seeds"} <= document.keys():
            raise ValueError("a part is missing")
    except FileNotFoundError:
        raise FormatError(f"{path}: no band was measured yet; do it with --measure-band") from None
    except (ValueError, AttributeError) as error:
        raise FormatError(f"{path}: damaged ({error}); measure it anew with --measure-band") from None
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 in the band, 1 out of it, 2 where nothing could be compared."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    try:
        return measure_band(options) if options.measure_band else compare(options)
    except ScaledYoloError as error:
        print(f"results-small: {error}", file=sys.stderr)
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
