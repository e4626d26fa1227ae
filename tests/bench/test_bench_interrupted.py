"""Ctrl-C in the middle of a benchmark: what was measured is printed, and the exit code says that it was stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scaledyolo.bench import rounds
from scaledyolo.bench.process import Worker
from scaledyolo.cli import main

WORDS = ["bench", "yolov4-tiny", "--sizes", "64", "--engines", "onnxruntime", "--threads", "1", "--warmup", "0"]


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the first process that is asked for its sample of this number, counted from 1, meet Ctrl-C."""
    taken: Counter[int] = Counter()
    original = Worker.sample

    def sample(self: Worker) -> Any:
        taken[id(self)] += 1
        if taken[id(self)] == number:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Worker, "sample", sample)


def test_complete_rounds_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stop_at(monkeypatch, 3)
    plot = tmp_path / "speed.svg"
    assert main([*WORDS, "--rounds", "9", "--json", "--plot", str(plot)]) == 130
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)
    assert row["rounds"] == 2
    assert 0 < row["median_ms"] <= row["p95_ms"]
    assert row["note"] == rounds.STOPPED
    assert row["error"] == ""
    assert printed.err == "scaledyolo: interrupted; these are the rounds that were complete\n"
    assert "<svg" in plot.read_text()


def test_networks_that_were_done_are_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stop_at(monkeypatch, 2)  # of a matrix product, whose process goes on with the second batch size
    assert main([*WORDS, "--batch", "1", "2", "--rounds", "1"]) == 130
    printed = capsys.readouterr()
    assert "yolov4-tiny 64" in printed.out
    assert "batch 2" not in printed.out
    assert rounds.STOPPED not in printed.out


def test_nothing_is_shown_as_measured_that_was_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stop_at(monkeypatch, 1)
    assert main([*WORDS, "--json", "--plot", str(tmp_path / "speed.png")]) == 130
    printed = capsys.readouterr()
    assert json.loads(printed.out) == []
    assert printed.err == "scaledyolo: interrupted before a single round was complete\n"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_layers_are_looked_at_keeps_the_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_with_layers", stop)
    assert main([*WORDS, "--rounds", "1", "--layers", "--json"]) == 130
    (row,) = json.loads(capsys.readouterr().out)
    assert row["median_ms"] > 0
    assert row["layers"] is None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="which process listens is looked up in /proc")
def test_the_signal_of_a_terminal_reaches_all_processes_and_loses_nothing() -> None:
    """As a person does it: the signal goes to the whole group, workers included."""
    words = [sys.executable, "-m", "scaledyolo", *WORDS, "--rounds", "1000000", "--json"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        workers = 3 if importlib.util.find_spec("torch") else 2  # the engine, and a matrix product in each library
        while _ready_workers(process.pid) < workers:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(5)  # for a few rounds
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "scaledyolo: interrupted; these are the rounds that were complete\n"
    (row,) = json.loads(out)
    assert row["rounds"] >= 1
    assert row["peak_mb"] > 10  # the worker was still there to be asked


def _ready_workers(parent: int) -> int:
    """How many children ignore the signal by now, which they do from the moment they are ready."""
    ready = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(
                line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line
            )
        except OSError:
            continue
        ready += int(status["PPid"]) == parent and bool(int(status["SigIgn"], 16) & (1 << (signal.SIGINT - 1)))
    return ready
