"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data, weights and photographs that lies beside the project; the test is skipped without it."""
    folder = Path(os.environ.get("SCALEDYOLO_SHARED", Path(__file__).parents[1] / ".." / "shared"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder.resolve()}; set SCALEDYOLO_SHARED")
    return folder.resolve()
