"""What a training runs on and with: number formats of the hardware, memory, versions, the code itself."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import scaledyolo
from scaledyolo.errors import UsageError
from scaledyolo.host import processor_name
from scaledyolo.train.settings import Device, Precision

_PACKAGES = (
    "scaledyolo", "torch", "numpy", "opencv-python-headless", "lightning-fabric", "faster-coco-eval", "safetensors",
)  # fmt: skip
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86 and, the last, ARM
_GIT_SECONDS = 5.0
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3); values 0 and -1 switch both off


def device_type(device: Device) -> str:
    """The device that ``auto`` stands for on this machine."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(precision: Precision, device: str) -> Precision:
    """The precision that ``auto`` stands for: bfloat16 only where the hardware multiplies it, for elsewhere it is slow.

    Raises:
        UsageError: float16 was asked for on a CPU.
    """
    if precision == "16" and device == "cpu":
        raise UsageError("float16 is not for training on a CPU; use --precision bf16, or 32")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
    return "bf16" if device == "cpu" and cpu_has_bf16() else "32"


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16; False where it cannot be told."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return not _BF16_FLAGS.isdisjoint(next(lines, "").split())


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees for its next allocation; whether the C library could be told.

    A training step on a CPU allocates and frees a gigabyte of activations. The GNU C library hands large blocks back to
    the system at once and gets them again page by page, each page filled with zeros: 10 to 15 % of a step of
    yolov4-tiny was spent so. The peak hardly changes, for every step needs the same. Where the user chose how memory
    is handled (``MALLOC_...``, ``GLIBC_TUNABLES``, ``LD_PRELOAD``), nothing is changed.
    """
    chosen = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if chosen or not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(_M_MMAP_MAX, 0)) and bool(set_option(_M_TRIM_THRESHOLD, -1))


def peak_memory() -> int:
    """Largest resident memory of this process so far in bytes; 0 where the system does not say."""
    # Asked first, for what getrusage tells may be the peak of the process that started this one: exec keeps it.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """The machine and the software on it, as plain values."""
    return {
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": _versions(),
    }


def _versions() -> Mapping[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def code_fingerprint() -> str:
    """SHA-256 over names and contents of all Python files of this package."""
    root = Path(scaledyolo.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def git_commit() -> str | None:
    """The commit of the source tree, with ``+changes`` where files differ from it; None for an installed package."""
    folder = Path(scaledyolo.__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        # An installed package inside somebody's repository is not tracked by it.
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ("git", "-C", str(folder), *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_GIT_SECONDS).stdout.strip()
