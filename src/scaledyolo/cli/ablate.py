"""`scaledyolo ablate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scaledyolo.errors import MissingPackageError

if TYPE_CHECKING:
    from scaledyolo.train.ablation.grid import Cell, Grid
    from scaledyolo.train.ablation.run import Material
    from scaledyolo.train.settings import Settings


@dataclass(frozen=True)
class Ablate:
    """Train and measure every network of a grid file under every recipe and seed of it, and write the table.

    The same command goes on where it was stopped: cells that are done are not repeated.
    """

    grid: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="GRID.yaml")]
    """Networks, recipes and seeds; benchmarks/grids has the paper's tables."""
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")]
    """Folders or files of data sets, taken as one, their classes merged by name; formats are recognised by looking."""
    split: str = "train"
    """What to learn from: a split, all, a .txt file that lists images, or a share of any of these: train[:80%]."""
    val_split: str = "val"
    """What to choose the best epoch by: likewise, or the share of --split that is kept apart for it, such as 0.2."""
    test_split: str = "test"
    """What to measure on."""
    protocol: str = "coco"
    """Thresholds of the measurement, as in `scaledyolo eval`."""
    engine: str = "auto"
    """What runs the trained networks."""
    out: Path | None = None
    """Folder of the cells and tables; by default runs/ablate-NAME of the grid."""
    dry_run: bool = False
    """Check everything, list the cells and stop."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Of forward and backward; weights and loss are always float32."""
    workers: int = 1
    """Threads that prepare images."""
    cache: Literal["none", "ram", "disk"] = "ram"
    """Where decoded images are remembered."""
    save_every: float = 300.0
    """Seconds between saves within an epoch; every epoch is saved anyway."""
    bad: Literal["fail", "skip", "fix"] = "fix"
    """What to do with broken labels and images."""
    json: bool = False
    """Print the table as JSON instead of Markdown."""

    def run(self) -> int:
        try:
            from scaledyolo.train.ablation.grid import read_grid
            from scaledyolo.train.ablation.run import run_cells
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"ablation needs {error.name}; install it with: pip install 'scaledyolo[train]'"
            ) from None
        from scaledyolo.train.ablation.table import as_dict, markdown, write_tables

        grid = read_grid(self.grid)
        grid.cells(num_classes=1)  # what is wrong with the grid is said before any image is read
        material = self._material()
        cells = grid.cells(material.train.num_classes)
        if self.dry_run:
            print(plan(grid, cells))
            return 0
        folder = self.out or Path("runs") / f"ablate-{grid.name}"
        results = run_cells(
            cells, material, folder, self._settings(grid), lambda line: print(line, file=sys.stderr, flush=True)
        )
        rows = write_tables(folder, grid.name, grid.head.about, results)
        if self.json:
            print(json.dumps(as_dict(grid.name, grid.head.about, rows, results), indent=2))
        else:
            print(markdown(grid.name, grid.head.about, rows), end="")
            print(f"\ntables in {folder}")
        return 0

    def _material(self) -> Material:
        from scaledyolo.data.dataset import with_classes_of
        from scaledyolo.data.selection import open_part, parse_pair, parse_part
        from scaledyolo.evaluate.protocols import protocol
        from scaledyolo.train.ablation.run import Material
        from scaledyolo.train.settings import DataSource

        rules = protocol(self.protocol)
        part, val_part = parse_pair(self.split, self.val_split)
        parse_part(self.test_split)
        paths = tuple(str(path.expanduser().absolute()) for path in self.data)
        source = DataSource(paths, str(part.absolute()), str(val_part.absolute()), self.bad)
        train, val = source.open()
        test = with_classes_of(open_part(paths, self.test_split, bad=self.bad), train)
        return Material(source, train, val, test, rules, self.engine)

    def _settings(self, grid: Grid) -> Settings:
        from scaledyolo.train.machine import device_type, resolve_precision
        from scaledyolo.train.settings import Settings

        return Settings(
            device=self.device,
            precision=resolve_precision(self.precision, device_type(self.device)),
            workers=self.workers,
            cache=self.cache,
            evaluate_every=grid.head.evaluate_every,
            save_every=self.save_every,
        )


def plan(grid: Grid, cells: Sequence[Cell]) -> str:
    """What would be run."""
    from scaledyolo.arch.cost import cost
    from scaledyolo.arch.lower import lower

    widest = max(len(cell.name) for cell in cells)
    lines = [f"{'cell':<{widest}}{'size':>6}{'params M':>10}{'GFLOPs':>9}{'epochs':>8}"]
    for cell in cells:
        total, epochs = cost(lower(cell.spec)), cell.recipes[-1].schedule.epochs
        figures = f"{cell.spec.size:>6}{total.params / 1e6:>10.3f}{total.gflops:>9.3f}{epochs:>8}"
        lines.append(f"{cell.name:<{widest}}{figures}")
    expected = f", about {grid.head.minutes:g} minutes on two cores, says the file" if grid.head.minutes else ""
    return "\n".join([*lines, f"{len(cells)} trainings{expected}"])
