"""What trainings left behind, read back for plots, the model card and the regression guard.

A run folder of ``scaledyolo train`` holds ``run.json`` and ``epochs.csv``; a cell of ``scaledyolo ablate`` has
``result.json`` too, the figures of its best checkpoint on images that the training never saw.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scaledyolo.errors import DataError, FormatError, ScaledYoloError

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SCALEDYOLO_SHARED", ROOT / ".." / "shared")).resolve()
RUN_FILE, EPOCHS_FILE, RESULT_FILE = "run.json", "epochs.csv", "result.json"


class CommandError(ScaledYoloError):
    """A command ended with an error; names it."""


@dataclass(frozen=True)
class RunRecord:
    """A run folder; values are those of ``run.json``, rows those of ``epochs.csv`` without what was not measured."""

    folder: Path
    document: Mapping[str, Any]
    epochs: tuple[Mapping[str, float], ...]

    @property
    def name(self) -> str:
        """Its folder, or the one below which `train` made its own."""
        return self.folder.parent.name if self.folder.name == "train" else self.folder.name

    @property
    def seconds(self) -> float:
        """Training time, evaluation and saving included."""
        return self.epochs[-1]["seconds"] if self.epochs else 0.0

    @property
    def cores(self) -> int:
        """Threads of all processes that computed; the one beside them that prepares images is idle mostly."""
        environment = self.document["environment"]
        return int(environment["threads"]) * int(environment["processes"])

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(minutes of training, AP on the validation split) wherever it was evaluated."""
        return [(row["seconds"] / 60, row["ap"]) for row in self.epochs if "ap" in row]

    @property
    def commit(self) -> str:
        """Of the code that trained, with ``+changes`` where files differed from it."""
        return str(self.document.get("git_commit") or "unknown")

    @property
    def command(self) -> str:
        """The training as it can be repeated from the root of a checkout."""
        return repeatable(self.document["command"])

    @property
    def machine(self) -> str:
        """Processor, threads and precision in a phrase."""
        environment = self.document["environment"]
        precision = self.document["settings"]["precision"]
        threads = environment["threads"]
        return f"{environment['processor']}, {threads} thread{'' if threads == 1 else 's'}, {precision}"

    @cached_property
    def test_ap(self) -> float | None:
        """AP on the test images where `ablate` measured it, else None."""
        path = self.folder / RESULT_FILE
        ap = json.loads(path.read_text(encoding="utf-8"))["ap"] if path.is_file() else None
        return None if ap is None else float(ap)


def read_record(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        FormatError: it is not one, or a file in it is damaged.
    """
    path = folder / RUN_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        with (folder / EPOCHS_FILE).open(newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except FileNotFoundError as error:
        raise FormatError(
            f"{folder}: not the folder of a training, for it has no {Path(error.filename).name}"
        ) from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{folder}: damaged ({error})") from None
    return RunRecord(folder, document, tuple(rows))


def repeatable(words: Sequence[str]) -> str:
    """A command line without what is only true on this machine: absolute paths, and where the run was to lie."""
    shown, skip = [], False
    for place, word in enumerate(words):
        if skip:
            skip = False
        elif place == 0:
            shown.append("scaledyolo")
        elif word == "--out":
            skip = True
        else:
            shown.append(_portable(word))
    return shlex.join(shown)


def _portable(word: str) -> str:
    path = Path(word)
    if not path.is_absolute():
        return word
    for base, prefix in ((SHARED, Path("..") / "shared"), (ROOT, Path())):
        if path.is_relative_to(base):
            return (prefix / path.relative_to(base)).as_posix()
    return path.name


def data_folder(name: str) -> Path:
    """A data set that lies beside the checkout, by name, or a path.

    Raises:
        DataError: it is neither.
    """
    found = SHARED / "data" / name
    path = found if found.exists() else Path(name).expanduser()
    if not path.exists():
        raise DataError(
            f"{name}: no such data set; it is looked for in {found.parent} (SCALEDYOLO_SHARED) and as a path"
        )
    return path


def scaledyolo(*words: str) -> str:
    """Run the command in a process of its own; its progress is shown, its standard output returned.

    Raises:
        CommandError: it ended with an error.
    """
    done = subprocess.run([sys.executable, "-m", "scaledyolo", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{repeatable(('', *words))} ended with code {done.returncode}; its reason stands above")
    return done.stdout
