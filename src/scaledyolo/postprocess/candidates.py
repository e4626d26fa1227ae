"""The named value that decoding hands to suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaledyolo.boxes import Array


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Scored boxes of one image, row by row: before suppression many for each object, after it one."""

    boxes_xyxy: Array  # (n, 4) float32, pixels of the network input
    scores: Array  # (n,) float32, objectness times class probability
    class_ids: Array  # (n,) int64

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def take(self, rows: Any) -> Candidates:
        """The boxes at ``rows``: positions (m,) int64, a mask (n,) bool, or a slice."""
        return Candidates(self.boxes_xyxy[rows], self.scores[rows], self.class_ids[rows])
