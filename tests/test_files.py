"""Where files are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scaledyolo.data.cache import ImageStore
from scaledyolo.files import cache_folder


def test_the_cache_lies_where_the_user_wants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path / "home"))
    assert cache_folder("weights") == tmp_path / "home" / "weights"
    monkeypatch.setenv("SCALEDYOLO_HOME", "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("compiled") == tmp_path / "mine" / "compiled"
    monkeypatch.delenv("SCALEDYOLO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("weights") == tmp_path / "cache" / "scaledyolo" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("weights") == tmp_path / ".cache" / "scaledyolo" / "weights"


def test_images_are_cached_there_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    store = ImageStore(np.array([[2, 3]]), "disk", key=lambda: "key")
    store.get(0, lambda: np.full((2, 3, 3), 7, np.uint8))
    assert (tmp_path / "images" / "key.images").stat().st_size == 4 + 2 * 3 * 3
