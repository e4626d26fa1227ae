"""What the process ends with, verb by verb the same; 0 is success. Numbers repeat where a caller would do the same."""

from __future__ import annotations

from typing import Final

EXIT_INCOMPLETE: Final = 1  # done, but some inputs had to be skipped
EXIT_NOT_COMPARED: Final = 1  # the artefact runs, but the model to compare it with is not there
EXIT_ERROR: Final = 2  # nothing, or not all, could be done
EXIT_UNVERIFIED: Final = 2  # the artefact computes something else than its model
EXIT_INTERRUPTED: Final = 130
