"""The machine that this process runs on, as far as results and caches depend on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor_name() -> str:
    """What the processor calls itself, or its architecture where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Logical cores that this process may use, which may be fewer than there are."""
    return len(_usable())


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once where Linux tells."""
    siblings = set()
    for cpu in _usable():
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text(encoding="ascii") if path.is_file() else str(cpu))
    return len(siblings)


def _usable() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
