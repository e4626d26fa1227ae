"""What is built holds what it needs: the default model lies in the wheel and in the source distribution."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_wheel_and_source_distribution_carry_the_default_model(tmp_path, monkeypatch):
    build = pytest.importorskip("hatchling.build")
    project = tmp_path / "project"
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, project / name)
    model = project / "src" / "scaledyolo" / "models" / "default.safetensors"
    model.parent.mkdir(exist_ok=True)
    model.write_bytes(b"weights")
    monkeypatch.chdir(project)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        assert wheel.read("scaledyolo/models/default.safetensors") == b"weights"
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as distribution:
        assert [name for name in distribution.getnames() if name.endswith("src/scaledyolo/models/default.safetensors")]
