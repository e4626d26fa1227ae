"""`scaledyolo doctor`."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scaledyolo.cli.exit_codes import EXIT_ERROR
from scaledyolo.errors import DataError, MissingPackageError, counted

if TYPE_CHECKING:
    from scaledyolo.arch.spec import ModelSpec
    from scaledyolo.data.dataset import Dataset
    from scaledyolo.data.doctor import Diagnosis

_MARKS = {"blocks": "BLOCKS ", "warning": "warning", "fine": "fine   "}


@dataclass(frozen=True)
class Doctor:
    """Look at a data set before training on it: what is in it, what is wrong with it, and whether it can be learnt."""

    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")]
    """Folders or files of data sets, taken as one, their classes merged by name; formats are recognised by looking."""
    model: str = "yolov4-tiny"
    """Zoo name or spec file of the network to train."""
    size: int | None = None
    """Side of the network input in pixels; by default the model's own."""
    split: str = "train"
    """What to learn from: a split, all, a .txt file that lists images, or a share of any of these: train[:80%]."""
    val_split: str = "val"
    """What to choose the best epoch by: likewise, or the share of --split that is kept apart for it, such as 0.2."""
    batch: int = 16
    """Images of a training step, for the estimate of memory."""
    self_test: bool = False
    """Also learn one batch by heart, which takes up to a minute; needs scaledyolo[train]."""
    out: Path | None = None
    """Folder of all runs; a report with pictures goes into a new folder below."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        from scaledyolo.arch.lower import lower
        from scaledyolo.cli.options import sized
        from scaledyolo.cli.progress import progress_bar
        from scaledyolo.data.doctor import examine
        from scaledyolo.model import load_spec

        splits = self._splits()
        train = next(iter(splits.values()))
        spec = replace(load_spec(self.model).with_classes(train.num_classes), resize="letterbox")
        spec = sized(spec, self.size)
        graph = lower(spec)
        with progress_bar(sum(map(len, splits.values()))) as advance:
            diagnosis = examine(splits, graph, spec.size, batch=self.batch, progress=advance)
        if self.self_test:
            diagnosis = with_self_test(diagnosis, spec, train)
        print(json.dumps(asdict(diagnosis) | {"blocks": diagnosis.blocks}, indent=2) if self.json else text(diagnosis))
        if self.out is not None:
            self._report(diagnosis, splits)
        if not diagnosis.blocks and not self.json:
            print(f"nothing blocks; next: {self._train_command()}")
        return EXIT_ERROR if diagnosis.blocks else 0

    def _train_command(self) -> str:
        """What trains on this data, with the options that were given here."""
        words = ["scaledyolo", "train", "--data", *map(str, self.data), "--model", self.model]
        given = {"size": self.size, "split": self.split, "val-split": self.val_split}
        usual = {"size": None, "split": type(self).split, "val-split": type(self).val_split}
        for name, value in given.items():
            words += [f"--{name}", str(value)] if value != usual[name] else []
        return shlex.join(words)

    def _splits(self) -> dict[str, Dataset]:
        """The two splits of a training, and the test split where there is one; every image is decoded."""
        from scaledyolo.data.dataset import with_classes_of
        from scaledyolo.data.selection import ALL, open_pair, open_part, parse_pair

        train, val = open_pair(self.data, self.split, self.val_split, check="full")
        parts = parse_pair(self.split, self.val_split)
        splits = dict(zip(map(str, parts), (train, val), strict=True))
        if all(part.base not in (ALL, "test") for part in parts):
            with contextlib.suppress(DataError):  # most data sets have none
                splits["test"] = with_classes_of(open_part(self.data, "test", check="full"), train)
        return splits

    def _report(self, diagnosis: Diagnosis, splits: Mapping[str, Dataset]) -> None:
        from scaledyolo.cli.doctor_page import page
        from scaledyolo.outputs.files import create_run_folder, write_whole

        assert self.out is not None
        folder = create_run_folder(self.out, "doctor")
        write_whole(folder / "report.json", json.dumps(asdict(diagnosis), indent=2).encode())
        write_whole(folder / "report.html", page(diagnosis, splits).encode("utf-8", "replace"))
        if not self.json:
            print(f"report: {folder / 'report.html'}")


def with_self_test(diagnosis: Diagnosis, spec: ModelSpec, train: Dataset) -> Diagnosis:
    """The diagnosis with the outcome of learning one batch by heart.

    Raises:
        MissingPackageError: torch is not installed.
    """
    from scaledyolo.data.doctor import Finding, by_gravity

    if not diagnosis.splits[0].boxes:
        return diagnosis  # that blocks already
    try:
        from scaledyolo.train.self_test import overfit_one_batch
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"--self-test needs {error.name}; install it with: pip install 'scaledyolo[train]'"
        ) from None
    result = overfit_one_batch(spec, train)
    words = str(result) if result.passed else f"{result}: the network does not learn from these boxes"
    finding = Finding("fine" if result.passed else "blocks", "self-test", words)
    return replace(diagnosis, findings=tuple(by_gravity((*diagnosis.findings, finding))))


def text(diagnosis: Diagnosis) -> str:
    """The diagnosis for people."""
    lines = [f"{diagnosis.model} at {diagnosis.size} pixels"]
    for split in diagnosis.splits:
        seen = f"{counted(split.images, 'image')}, {counted(split.boxes, 'box', 'boxes')}"
        lines += [f"{split.name}: {seen}, {counted(split.background, 'image')} without a box"]
        lines += class_lines(split.class_counts)
        if split.sizes:
            named = zip(("smallest", "10 %", "median", "90 %", "largest"), split.sizes, strict=True)
            lines.append("  sizes in pixels   " + "  ".join(f"{name} {value:g}" for name, value in named))
    lines.append(
        f"memory: about {diagnosis.training_bytes / 2**30:.1f} GiB in float32 for batches of {diagnosis.batch}, "
        f"and {diagnosis.cache_bytes / 2**30:.2f} GiB for the images in RAM"
    )
    lines += [f"{_MARKS[finding.level]}  {finding.topic}: {finding.text}" for finding in diagnosis.findings]
    if diagnosis.blocks:
        lines.append("A training on this would be of no use; see what BLOCKS above.")
    return "\n".join(lines)


def class_lines(counts: Mapping[str, int], *, width: int = 40, shown: int = 20) -> list[str]:
    """A histogram in letters, most frequent class first."""
    most = max([1, *counts.values()])
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    bars = ((name[:18], "#" * round(width * count / most), count) for name, count in ordered[:shown])
    lines = [f"  {name:<18}{bar:<{width}} {count}" for name, bar, count in bars]
    more = len(ordered) - shown
    return lines + ([f"  and {counted(more, 'more class', 'more classes')}"] if more > 0 else [])
