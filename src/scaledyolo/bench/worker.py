"""The process in which one candidate lives: `python -m scaledyolo.bench.worker`.

Each candidate has a process of its own, so that no runtime's threads or memory count against another and the peak
memory is what a program needs that does nothing else. It reads a job from standard input, prepares it, and then takes
one sample for each further line. It measures itself: what passing messages costs is not in the samples.

Answers are lines of JSON: ``{"ready": facts}``, ``{"sample": ...}`` or ``{"error": sentence}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from scaledyolo.bench.candidates import Candidate, prepare
from scaledyolo.bench.jobs import read_job
from scaledyolo.errors import ScaledYoloError


def main() -> None:
    """Serve one job until standard input ends."""
    # Runtimes print what they like to standard output; from here on that goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=answers, flush=True)

    line = sys.stdin.readline()
    candidate = _told(lambda: prepare(read_job(line)), answer)
    if not isinstance(candidate, Candidate):
        return
    # Ctrl-C in a terminal goes to all processes; from here on it is the parent's to say what has to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer({"ready": candidate.facts()})
    while sys.stdin.readline():
        sample = _told(candidate.sample, answer)
        if sample is None:
            return
        answer({"sample": sample})


def _told(act: Callable[[], Any], answer: Callable[[dict[str, Any]], None]) -> Any:
    """What ``act`` returns; None where it failed, which has been answered in one sentence."""
    try:
        return act()
    except ScaledYoloError as error:
        answer({"error": str(error)})
    except MemoryError:
        answer({"error": "the memory of this machine does not suffice"})
    except Exception as error:  # whatever a runtime throws must not end the benchmark
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer({"error": f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"})
    return None


if __name__ == "__main__":
    main()
