"""benchmarks/gpu_tables.py on a CPU: its rows, that it goes on where it ended, and that a failure is a row."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_tables.py"
SHORT = ("--device", "cpu", "--precisions", "float32", "--forms", "eager", "--batches-up-to", "2", "--rounds", "1")


@pytest.fixture(scope="module")
def gpu_tables() -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("the benchmarks are not beside the tests")
    described = importlib.util.spec_from_file_location("gpu_tables", SCRIPT)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules["gpu_tables"] = module  # dataclasses ask for it
    described.loader.exec_module(module)
    return module


def test_it_measures_goes_on_and_tells_why_it_could_not(gpu_tables, tmp_path, capsys) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--out", str(out), "--models", "yolov4-tiny@64", "yolov4-tiny@100", *SHORT]
    assert gpu_tables.main(words) == 1  # one of them failed
    written = out.read_text()
    rows = [json.loads(line) for line in written.splitlines()]
    *measured, failed = rows
    assert [row["batch"] for row in measured] in ([1], [1, 2])
    one = measured[0]
    assert (one["model"], one["size"], one["precision"], one["device"]) == ("yolov4-tiny", 64, "float32", "cpu")
    gflops = cost(lower(find("yolov4-tiny")).with_size(64, 64)).gflops
    assert one["tflops_per_s"] == pytest.approx(gflops / one["network_ms"])
    assert one["share_of_peak"] == pytest.approx(one["tflops_per_s"] / one["peak_tflops_per_s"])
    assert one["end_to_end_fps"] == pytest.approx(1000 / one["end_to_end_ms"])
    assert "SpecError" in failed["reason"]
    assert "multiple" in failed["reason"]
    told = capsys.readouterr().out
    assert "| yolov4-tiny | 64 | float32 | eager | 1 |" in told
    assert "yolov4-tiny at 100, float32, eager: SpecError" in told

    with out.open("a") as file:
        file.write('{"model": "yolov4-ti')  # as a run leaves it that was cut off
    assert gpu_tables.main(words) == 1
    assert out.read_text().startswith(written)
    assert len(gpu_tables.read_rows(out)) == len(rows)
    assert gpu_tables.main([*words, "--minutes", "0", "--again"]) == 1
    captured = capsys.readouterr()
    assert "1 are left" in captured.out
    assert "cut off" in captured.err
    gpu_tables.append_rows(out, [{**failed, "reason": "another"}])
    assert [row["reason"] for row in gpu_tables.current(gpu_tables.read_rows(out)) if "reason" in row] == ["another"]


def test_the_batch_is_doubled_until_it_does_not_pay_or_fit(gpu_tables, monkeypatch) -> None:
    contest = object.__new__(gpu_tables.Contest)
    contest.watch = gpu_tables.Stopwatch("cpu")
    times = {1: 10.0, 2: 10.0, 4: 12.0, 8: 23.9, 16: 40.0}
    contest.detector = type("Detector", (), {"plain_network": staticmethod(lambda batch: None)})
    monkeypatch.setattr(gpu_tables.Contest, "input", lambda self, batch: batch)
    monkeypatch.setattr(gpu_tables.Stopwatch, "call_ms", lambda self, run, calls=1: times[run.args[0]])
    contest.tried = {}
    assert "a batch of 8 is only 1.00 times" in contest._search(64)
    assert (contest.best, sorted(contest.tried)) == (4, [1, 2, 4, 8])

    def crowded(self, batch: int) -> int:
        if batch > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return batch

    monkeypatch.setattr(gpu_tables.Contest, "input", crowded)
    contest.tried = {}
    assert contest._search(64) == "a batch of 4 fails: CUDA out of memory"
    assert contest.best == 2
    contest.tried = {}
    monkeypatch.setattr(gpu_tables.Contest, "input", lambda self, batch: crowded(self, 4))
    with pytest.raises(RuntimeError, match="out of memory"):
        contest._search(64)


def test_it_never_measures_another_device_or_network(gpu_tables, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_tables.main(["--out", str(out)]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert gpu_tables.main(["--out", str(out), "--device", "cpu", "--models", "yolov4-tinny"]) == 2
    assert "yolov4-tiny" in capsys.readouterr().err
    assert not out.exists()


def test_all_its_networks_exist_and_fit_their_sizes(gpu_tables) -> None:
    arguments = gpu_tables.parser().parse_args(["--out", "rows.jsonl"])
    jobs = list(gpu_tables.jobs_of(arguments))
    assert len(jobs) == len({job.key for job in jobs}) == 4 * len(gpu_tables.NETWORKS)
    assert [job.form for job in jobs] == sorted((job.form for job in jobs), key=("eager", "compiled").index)
    for model, size in {(job.model, job.size) for job in jobs}:
        lower(find(model)).check_size(size, size)


def test_it_needs_little(tmp_path) -> None:
    """The machine with the GPU may have no more than torch, NumPy and what its first lines name."""
    absent = ("cv2", "PIL", "yaml", "tyro", "safetensors", "supervision", "onnx", "onnxruntime", "openvino", "scipy")
    absent = (*absent, "matplotlib", "rich", "pycocotools", "requests", "psutil")
    hidden = "; ".join(f"sys.modules[{name!r}] = None" for name in absent)
    code = f"import runpy, sys; {hidden}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    words = ["--device", "cpu", "--minutes", "0", "--out", str(tmp_path / "rows.jsonl")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    assert "48 are left" in done.stdout
