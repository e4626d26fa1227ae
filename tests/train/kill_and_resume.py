"""Trains, is killed at random moments, and goes on until it is done. Run by test_training_resume.py.

    python kill_and_resume.py SEED KILLS scaledyolo-arguments...

One process imports everything and forks the trainings, so that a kill costs milliseconds instead of a start of Python.
Prints what the run folder held at each kill, as JSON lines.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import scaledyolo.train.loop
import scaledyolo.train.prepare  # noqa: F401
from scaledyolo.checkpoint import load_checkpoint  # noqa: F401
from scaledyolo.cli import main
from scaledyolo.train.state import load_state


def fork_training(arguments: list[str]) -> int:
    process = os.fork()
    if process == 0:
        os._exit(main(arguments))
    return process


def ended(process: int) -> bool:
    found, status = os.waitpid(process, os.WNOHANG)
    if found and status:
        raise SystemExit(f"the training failed with status {status}")
    return bool(found)


def half_written(folder: Path) -> list[str]:
    return [path.name.split(".")[1] for path in folder.glob(".*.part")]


def moment(folder: Path, process: int, random_: random.Random, kind: int) -> bool:
    """Wait for a moment to kill; False if the training ended before it came."""
    if kind % 3 == 0:  # while a file is being written, one drawn by chance
        wanted, seen = random_.randrange(1, 6), 0
        before: list[str] = []
        while not ended(process):
            now = half_written(folder)
            seen += now != before and bool(now)
            if seen >= wanted:
                return True
            before = now
        return False
    # Some time after the first save of this leg.
    state = folder / "state.safetensors"
    first = state.stat().st_mtime_ns if state.exists() else 0
    while not state.exists() or state.stat().st_mtime_ns == first:
        if ended(process):
            return False
        time.sleep(0.001)
    until = time.monotonic() + random_.uniform(0.0, 0.25)
    while time.monotonic() < until:
        if ended(process):
            return False
        time.sleep(0.001)
    return True


def run(seed: int, kills: int, arguments: list[str]) -> None:
    folder = Path(arguments[arguments.index("--out") + 1]) / "train"
    random_ = random.Random(seed)
    for number in range(kills):
        resumable = (folder / "state.safetensors").exists()
        process = fork_training(["train", "--resume", str(folder)] if resumable else arguments)
        if not moment(folder, process, random_, number):
            return
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        progress = load_state(folder / "state.safetensors").progress
        facts = {"epoch": progress.epoch, "batch": progress.batch, "half_written": half_written(folder)}
        print(json.dumps(facts), flush=True)
    process = fork_training(["train", "--resume", str(folder)])
    while not ended(process):
        time.sleep(0.01)


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
