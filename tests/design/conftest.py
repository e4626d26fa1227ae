"""What tests of the command share: `scale` in a hurry."""

from __future__ import annotations

import pytest

from scaledyolo.arch.scaling import tiny_scaled
from scaledyolo.arch.zoo import find
from scaledyolo.cli.anchors import write_spec
from scaledyolo.design import calibrate, device
from scaledyolo.design.candidates import Range, enumerate_candidates


@pytest.fixture
def hurried(monkeypatch, tmp_path):
    """A folder with a small network to scale, a calibration of four, short measurements, and a cache of its own."""
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_spec(tmp_path / "small.yaml", tiny_scaled(find("yolov4-tiny-3l"), growth=8, name="small"))
    few = enumerate_candidates(Range(base="tiny", least=256, most=256, growths=(8,)))
    chosen = [(one, index % 4 == 3) for index, one in enumerate(few)]
    monkeypatch.setattr(calibrate, "calibration", lambda: chosen)
    monkeypatch.setattr(device, "_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(device, "_ROUNDS", 3)
    return tmp_path
