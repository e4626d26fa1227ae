"""Experiments on small data sets: one thing changed each against the recipe `small`, at a reduced cost.

    python scripts/small_data.py --plan                        # the table of what would be run, with every command
    python scripts/small_data.py --data bccd aquarium          # run what is not done yet; goes on where it was stopped
    python scripts/small_data.py --only base ema-slow --seeds 0 1 2      # the finalists, with more seeds
    python scripts/small_data.py --table                       # what is done, as Markdown for docs/results.md

Figures are AP and AP50 of the best checkpoint on the test split, which no choice within a run looks at. Differences are
to the baseline of the same seeds. The last column says how they compare with how much the baseline's own seeds differ.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from run_records import (
    RESULT_FILE,
    ROOT,
    RunRecord,
    data_folder,
    read_record,
    repeatable,
    scaledyolo,
    train_and_measure,
)

from scaledyolo.errors import ScaledYoloError, UsageError, nearest

EXIT_ERROR = 2
BASELINE = "base"
# The recipe `small` at a reduced cost: fewer pixels, fewer epochs, few evaluations.
REDUCED = "--recipe small --size 320 --epochs 40 --evaluate-every 5"


@dataclass(frozen=True)
class Experiment:
    """One thing changed. ``change`` are options of `train`: they win over the baseline's, but --set adds to its."""

    name: str
    factor: str
    meaning: str
    change: str = ""
    fits_anchors: bool = False  # needs a spec file with anchors of the data, made first


# The last epochs without mosaic stay a quarter of all where their number is not what is asked about.
EXPERIMENTS = (
    Experiment(BASELINE, "-", "what the others are compared with"),
    Experiment("short", "epochs", "half of them", "--epochs 20 --set schedule.plain_epochs=5"),
    Experiment("long", "epochs", "twice as many", "--epochs 80 --set schedule.plain_epochs=20"),
    Experiment("rate-low", "learning rate", "the published 0.01", "--set optimiser.learning_rate=0.01"),
    Experiment("rate-high", "learning rate", "0.04", "--set optimiser.learning_rate=0.04"),
    Experiment(
        "adamw", "optimiser", "AdamW at 0.001 with weight decay 0.05",
        "--set optimiser.name=adamw optimiser.learning_rate=0.001 optimiser.weight_decay=0.05",
    ),
    Experiment("ema-fast", "moving average", "decay 0.99", "--set ema.decay=0.99"),
    Experiment("ema-slow", "moving average", "decay 0.9995", "--set ema.decay=0.9995"),
    Experiment(
        "warmup-short", "warm-up", "one epoch", "--set schedule.warmup_epochs=1 schedule.warmup_min_steps=10"
    ),
    Experiment("warmup-long", "warm-up", "at least 200 batches", "--set schedule.warmup_min_steps=200"),
    Experiment("close-never", "closing mosaic", "never", "--set schedule.plain_epochs=0"),
    Experiment("close-early", "closing mosaic", "for the last half", "--set schedule.plain_epochs=20"),
    Experiment("mosaic-never", "mosaic", "whole images only", "--set augmentation.mosaic=0"),
    Experiment("scale-narrow", "range of scales", "0.75 to 1.25", "--set augmentation.scale=0.25"),
    Experiment("scale-wide", "range of scales", "0.1 to 1.9", "--set augmentation.scale=0.9"),
    Experiment("anchors", "anchors", "fitted to the data instead of COCO's", fits_anchors=True),
    Experiment("threshold-low", "assignment", "anchors up to 3 times off", "--set assignment.anchor_threshold=3"),
    Experiment("threshold-high", "assignment", "anchors up to 6 times off", "--set assignment.anchor_threshold=6"),
    Experiment("neighbours-none", "assignment", "the centre's cell only", "--set assignment.neighbour_reach=0"),
    Experiment("image-weights", "sampling", "by what is missed", "--evaluate-every 1 --set image_weights=true"),
    Experiment("size-small", "input size", "256", "--size 256"),
    Experiment("size-large", "input size", "416", "--size 416"),
    Experiment("growing", "input size", "from half to whole in 70 % of the epochs", "--set first_size=0.5"),
    Experiment(
        "batch-small", "batch", "8, with half the rate",
        "--batch 8 --set optimiser.nominal_batch=8 optimiser.learning_rate=0.01",
    ),
    Experiment("batch-large", "batch", "32", "--batch 32 --set optimiser.nominal_batch=32"),
    Experiment("default", "start", "the default model", "--weights default"),
    Experiment(
        "default-short", "start", "the default model, half the epochs",
        "--weights default --epochs 20 --set schedule.plain_epochs=5",
    ),
)  # fmt: skip
NAMES = {experiment.name: experiment for experiment in EXPERIMENTS}


@dataclass(frozen=True)
class Options:
    """What to do."""

    data: tuple[str, ...] = ("bccd",)
    """Data sets: folders below ../shared/data, or paths."""
    only: tuple[str, ...] = ()
    """Names of experiments; by default all. The baseline is always one of them."""
    seeds: tuple[int, ...] = (0,)
    """Each experiment is run with each."""
    plan: bool = False
    """Print the table of what would be run, and run nothing."""
    table: bool = False
    """Print the table of what is done, and run nothing."""
    base: str = REDUCED
    """Options of `scaledyolo train` that all experiments share, as --base="..."."""
    out: Path = ROOT / "runs" / "small-data"
    """Folder of all runs: DATA/EXPERIMENT/seedN."""


def chosen(options: Options) -> tuple[Experiment, ...]:
    """The experiments that were asked for, the baseline first.

    Raises:
        UsageError: there is none of a name.
    """
    for name in options.only:
        if name not in NAMES:
            raise UsageError(f"there is no experiment {name!r}.{nearest(name, NAMES)}")
    return tuple(item for item in EXPERIMENTS if not options.only or item.name in (BASELINE, *options.only))


def train_words(options: Options, experiment: Experiment, seed: int, anchors: Path | None) -> list[str]:
    """Options of `scaledyolo train` for one run; of an option given twice the last counts, but --set adds up."""
    model = ["--model", str(anchors)] if anchors is not None else []
    merged: dict[str, list[str]] = {}
    for word in (*shlex.split(options.base), *shlex.split(experiment.change), *model, "--seed", str(seed)):
        if word.startswith("--"):
            option = word
            merged[option] = merged.get(option, []) if option == "--set" else []
        else:
            merged[option].append(word)
    return [text for option, values in merged.items() for text in (option, *values)]


def run_folder(options: Options, data: str, experiment: Experiment, seed: int) -> Path:
    """Where a run lies."""
    return options.out / Path(data).name / experiment.name / f"seed{seed}"


def run_one(options: Options, data: str, experiment: Experiment, seed: int) -> RunRecord:
    """Run one experiment, or read it where it is done."""
    path, folder = data_folder(data), run_folder(options, data, experiment, seed)
    anchors = folder / "anchors.yaml" if experiment.fits_anchors else None
    words = train_words(options, experiment, seed, anchors)
    if anchors is not None and not anchors.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        size = words[words.index("--size") + 1] if "--size" in words else "416"
        scaledyolo("anchors", "--data", str(path), "--size", size, "--out", str(anchors))
    return train_and_measure(folder, words, path)


def plan(options: Options) -> Iterator[str]:
    """What would be run, as Markdown."""
    runs = len(chosen(options)) * len(options.seeds) * len(options.data)
    yield f"{runs} runs: {len(options.data)} data set(s), {len(options.seeds)} seed(s).\n"
    yield "| experiment | changed | to | command |"
    yield "| --- | --- | --- | --- |"
    for item in chosen(options):
        anchors = Path("anchors.yaml") if item.fits_anchors else None
        words = train_words(options, item, options.seeds[0], anchors)
        command = repeatable(("", "train", "--data", options.data[0], *words))
        yield f"| {item.name} | {item.factor} | {item.meaning} | `{command}` |"


def table(options: Options) -> Iterator[str]:
    """What is done, as Markdown: one table for each data set."""
    for data in options.data:
        done = {item: list(_done(options, data, item)) for item in chosen(options)}
        base = done[NAMES[BASELINE]]
        if not base:
            yield f"{data}: the baseline has not been run yet."
            continue
        spread = _spread(record.result.ap for record in base if record.result)
        shown = f"{spread:.4f}" if spread is not None else "unknown, for it has one seed"
        yield f"\n{Path(data).name}, `{options.base}`."
        yield f"Standard deviation of the baseline's AP over its seeds: {shown}.\n"
        yield "| experiment | changed | to | seeds | AP | AP50 | minutes | AP to baseline |"
        yield "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |"
        yield from (_row(item, records, base, spread) for item, records in done.items() if records)
        yield f"\nCommit {base[0].commit[:12]}, {base[0].machine}."


def _done(options: Options, data: str, experiment: Experiment) -> Iterator[RunRecord]:
    for folder in sorted((options.out / Path(data).name / experiment.name).glob("seed*/train")):
        if (folder / RESULT_FILE).is_file():
            yield read_record(folder)


def _row(item: Experiment, records: Sequence[RunRecord], base: Sequence[RunRecord], spread: float | None) -> str:
    by_seed = {_seed(record): record.result.ap for record in base if record.result}
    results = [record.result for record in records if record.result]
    pairs = [
        record.result.ap - by_seed[_seed(record)] for record in records if record.result and _seed(record) in by_seed
    ]
    cells = (
        item.name,
        item.factor,
        item.meaning,
        ", ".join(str(_seed(record)) for record in records),
        f"{statistics.mean(result.ap for result in results):.4f}",
        f"{statistics.mean(result.ap50 for result in results):.4f}",
        f"{statistics.mean(result.seconds for result in results) / 60:.1f}",
        "" if item.name == BASELINE else _difference(pairs, spread),
    )
    return f"| {' | '.join(cells)} |"


def _difference(pairs: Sequence[float], spread: float | None) -> str:
    """The mean difference; bold where it is more than twice what the spread of the seeds makes of such a mean."""
    if not pairs:
        return "no seed in common"
    mean = statistics.mean(pairs)
    text = f"{mean:+.4f}"
    if spread is None:
        return text
    noise = spread * (2 / len(pairs)) ** 0.5  # of a difference of two means
    return f"**{text}**" if abs(mean) > 2 * noise else text


def _seed(record: RunRecord) -> int:
    return int(record.document["seed"])


def _spread(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.stdev(found) if len(found) > 1 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 where a run failed."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    try:
        if options.plan or options.table:
            print("\n".join(plan(options) if options.plan else table(options)))
            return 0
        for seed in options.seeds:
            for data in options.data:
                for experiment in chosen(options):
                    result = run_one(options, data, experiment, seed).result
                    assert result is not None
                    print(
                        f"{data} {experiment.name} seed {seed}: AP {result.ap:.4f}, AP50 {result.ap50:.4f}", flush=True
                    )
    except ScaledYoloError as error:
        print(f"small_data: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
