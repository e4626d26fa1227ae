"""The core alone, installed as a user installs it: no torch anywhere, and the main job is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from scaledyolo.default_model import SHIPPED_FILE

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    environment |= {"SCALEDYOLO_HOME": str(cwd / "home"), "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, **options)


@pytest.fixture(scope="module")
def binaries(tmp_path_factory) -> Path:
    """The ``bin`` folder of a fresh environment that holds the core and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    made = run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    assert made.returncode == 0, made.stderr
    binaries = folder / "venv" / "bin"
    pip = (binaries / "python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    done = run(*pip, "install", "--constraint", ROOT / "constraints.txt", ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run(*pip, "check", cwd=folder).returncode == 0
    return binaries


def test_the_main_job_needs_no_torch(binaries, colours, paint, tmp_path):
    assert "No module named 'torch'" in run(binaries / "python", "-c", "import torch", cwd=tmp_path).stderr
    for path in (colours.cfg, colours.weights):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Image.fromarray(paint(64, 64, (1, 2, 0), (5, 2, 1), (3, 6, 2))).save(tmp_path / "picture.png")
    scaledyolo = binaries / "scaledyolo"

    described = run(scaledyolo, "describe", "yolov4-p5", "--json", cwd=tmp_path)
    assert json.loads(described.stdout)["params"] == 70_834_012
    converted = run(scaledyolo, "convert", "colours.weights", "colours.safetensors", cwd=tmp_path)
    assert (converted.returncode, converted.stderr) == (0, "")
    for model in (("colours.safetensors",), ("colours.cfg", "colours.weights")):
        formats = ("media", "jsonl", "csv", "coco", "yolo", "crops")
        found = run(scaledyolo, "detect", "picture.png", "--model", *model, "--save", *formats, cwd=tmp_path)
        assert (found.returncode, found.stderr) == (0, "")
        assert "1 image, 3 objects" in found.stdout
    line = json.loads((tmp_path / "runs" / "detect" / "detections.jsonl").read_text())
    assert sorted(item["xyxy"] for item in line["detections"]) == [[8, 16, 16, 24], [24, 48, 32, 56], [40, 16, 48, 24]]


def test_what_needs_torch_names_the_extra(binaries, colours, paint, tmp_path):
    Image.fromarray(paint(64, 64)).save(tmp_path / "picture.png")
    refused = run(
        binaries / "scaledyolo", "detect", "picture.png", "--model", colours.path, "--engine", "torch", cwd=tmp_path
    )
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "scaledyolo[train]" in refused.stderr


def test_the_package_carries_its_data_and_types(binaries, tmp_path):
    code = (
        "import importlib.resources as r; files = r.files('scaledyolo');"
        "assert all(files.joinpath(name).is_file() for name in ('py.typed', 'weights_registry.json'));"
        "from scaledyolo.weights_registry import find_weights; print(find_weights('yolov4-tiny').licence)"
    )
    done = run(binaries / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not SHIPPED_FILE.is_file(), reason="this copy has no default model")
def test_the_first_command_finds_a_person_without_a_model_or_a_download(binaries, tmp_path):
    where = "import matplotlib; print(matplotlib.get_data_path() + '/sample_data/grace_hopper.jpg')"
    photograph = run(binaries / "python", "-c", where, cwd=tmp_path).stdout.strip()
    done = run(binaries / "scaledyolo", "detect", photograph, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 person" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "runs" / "detect" / "annotated" / "grace_hopper.jpg").is_file()
