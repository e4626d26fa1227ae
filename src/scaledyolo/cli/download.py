"""`scaledyolo download`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Download:
    """Fetch official weights from their release page, verify them and keep them in the cache."""

    name: tyro.conf.Positional[str]
    """Name of the weights, such as yolov4-tiny."""

    def run(self) -> int:
        from scaledyolo.download import fetch

        print(fetch(self.name))
        return 0
