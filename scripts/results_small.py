"""`make results-small`: repeat one short training and see whether its accuracy still lies where it lay.

    python scripts/results_small.py                    # one seed, some minutes; exit code 1 out of the band
    python scripts/results_small.py --measure-band     # seeds 0 to 4; writes results_small.json beside this script

The band is the range in which one further seed lies with 99 % probability, if seeds differ as the measured ones do
(prediction interval of a normal distribution with Student's t). A run out of it, above or below, means that the code
learns differently than it did: find out why, then measure the band anew.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from run_records import ROOT, RunRecord, data_folder, train_and_measure
from scipy import stats

from scaledyolo.data.formats import open_dataset
from scaledyolo.errors import FormatError, ScaledYoloError
from scaledyolo.files import atomic_file

BAND_FILE = Path(__file__).with_suffix(".json")
PROBABILITY = 0.99
FIGURES = ("ap", "ap50")
EXIT_OUT_OF_BAND, EXIT_ERROR = 1, 2

# What is repeated. Changing it makes the stored band worthless: measure it anew.
TRAINING = "--recipe small --size 256 --epochs 20 --set schedule.plain_epochs=4 --evaluate-every 5"


@dataclass(frozen=True)
class Options:
    """What to do."""

    data: str = "bccd"
    """Data set: a folder below ../shared/data, or a path."""
    seed: int = 0
    """Of the run that is compared."""
    measure_band: bool = False
    """Run the seeds of --seeds and store what they give as the band."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the band."""
    band: Path = BAND_FILE
    """Where the band is stored."""
    out: Path = ROOT / "runs" / "results-small"
    """Folder of the runs; those of before are deleted."""
    train: str = TRAINING
    """Options of the training, as --train="..."; other ones need a band of their own."""


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


def run_seed(options: Options, seed: int) -> RunRecord:
    """One training of the fixed kind, from the beginning."""
    folder = options.out / f"seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    return train_and_measure(folder, (*shlex.split(options.train), "--seed", str(seed)), data_folder(options.data))


def measure_band(options: Options) -> int:
    """Run all seeds and store their figures."""
    if len(options.seeds) < 3:
        raise FormatError("a band needs at least three seeds")
    records = {seed: run_seed(options, seed) for seed in options.seeds}
    first = next(iter(records.values()))
    document = {
        "training": options.train,
        "data": fingerprints(data_folder(options.data)),
        "commit": first.commit,
        "machine": first.machine,
        "seeds": {str(seed): figures_of(record) for seed, record in records.items()},
    }
    with atomic_file(options.band) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for name, band in bands(document).items():
        print(f"{name}: {', '.join(f'{value:.3f}' for value in band.values)}; band {band}")
    print(f"{options.band}: written")
    return 0


def fingerprints(data: Path) -> dict[str, str]:
    """What identifies the images and boxes of each split."""
    return {split: open_dataset(data, split).fingerprint for split in ("train", "val", "test")}


def figures_of(record: RunRecord) -> dict[str, float]:
    """Test AP and AP50 of a run and its seconds, rounded as they are stored."""
    assert record.result is not None
    return {
        "ap": round(record.result.ap, 4),
        "ap50": round(record.result.ap50, 4),
        "seconds": round(record.result.seconds, 1),
    }


def bands(document: Mapping[str, Any]) -> dict[str, Band]:
    """The band of each figure."""
    return {name: Band(tuple(entry[name] for entry in document["seeds"].values())) for name in FIGURES}


def compare(options: Options) -> int:
    """Run one seed and say whether it lies in the band."""
    document = read_band(options.band)
    if document["training"] != options.train:
        raise FormatError(
            f"{options.band}: measured with another training ({document['training']}); measure it anew with "
            "--measure-band"
        )
    if document["data"] != fingerprints(data_folder(options.data)):
        raise FormatError(f"{options.data}: not the images and boxes that the band was measured on")
    record = run_seed(options, options.seed)
    found = figures_of(record)
    print(f"seed {options.seed}: {record.seconds:.0f} s of training on {record.machine}")
    print(f"the band is of commit {document['commit'][:12]} on {document['machine']}")
    verdict = judge(found, bands(document))
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
        document = json.loads(path.read_text(encoding="utf-8"))
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
