"""`scaledyolo download`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Download:
    """Fetch official weights from their release page, verify them and keep them in the cache."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of the weights, such as yolov4-tiny."""

    def run(self) -> int:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        from scaledyolo.download import fetch
        from scaledyolo.weights_registry import find_weights

        entry = find_weights(self.name)
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"Licence of these weights: {entry.licence}.", markup=False)
        if entry.seen_val2017:
            console.print("They were trained on images of COCO val2017, so figures measured there flatter.")
        if entry.note:
            console.print(entry.note, markup=False)
        columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(self.name, total=entry.expected_bytes, visible=False)
            path = fetch(
                self.name,
                progress=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
            )
        print(path)
        return 0
