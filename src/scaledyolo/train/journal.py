"""What a training says while it runs: a progress bar, a CSV, TensorBoard, and services that are asked for by name."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scaledyolo.files import atomic_file

STEPS_PER_SCALAR = 20  # training scalars are logged every so many batches
_REFRESHES = 2.0  # of the progress bar, in a second


@dataclass
class Journal:
    """Writes scalars of one run; on other ranks than the first it writes nothing."""

    folder: Path
    total_epochs: int
    loggers: list[Any] = field(default_factory=list)
    quiet: bool = False
    first_rank: bool = True

    def __post_init__(self) -> None:
        self.console = Console(stderr=True, quiet=self.quiet or not self.first_rank)
        self._bar: Progress | None = None
        self._task: Any = None

    @property
    def epochs_csv(self) -> Path:
        """One line an epoch: losses, metrics, rates, seconds."""
        return self.folder / "epochs.csv"

    def start_epoch(self, epoch: int, batches: int, done: int) -> None:
        """Open the progress bar of an epoch, from 0; ``done`` batches of it are behind."""
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=_REFRESHES,  # a thread draws it, on a core that the training wants
            disable=not self.console.is_terminal,
        )
        label = f"{epoch + 1}/{self.total_epochs}"
        self._task = self._bar.add_task("", total=batches, completed=done, epoch=label, text="")
        self._bar.start()

    def batch(self, step: int, scalars: Mapping[str, float]) -> None:
        """One batch is done; ``scalars`` by name."""
        if self._bar is not None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            self._bar.update(self._task, advance=1, text=text)
        if self.first_rank and step % STEPS_PER_SCALAR == 0:
            for logger in self.loggers:
                logger.log_metrics({f"batch/{name}": value for name, value in scalars.items()}, step=step)

    def end_epoch(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Write the line of the CSV and the scalars of the services; print one line."""
        if not self.first_rank:
            return
        self._write_csv(epoch, scalars)
        for logger in self.loggers:
            logger.log_metrics({f"epoch/{name}": value for name, value in scalars.items()}, step=epoch)
            logger.save()
        line = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        self.console.print(f"epoch {epoch + 1}/{self.total_epochs}  {line}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Tell the services that the run is complete."""
        for logger in self.loggers:
            logger.finalize("success")

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def close_bar(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _write_csv(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Append a line; a resumed run first drops the lines of epochs that it repeats."""
        rows: list[dict[str, str]] = []
        if self.epochs_csv.is_file():
            with self.epochs_csv.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]
        rows.append({"epoch": str(epoch + 1), **{name: f"{value:.6g}" for name, value in scalars.items()}})
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with atomic_file(self.epochs_csv) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
