"""What is asked of the machine before a training: here, to leave freed memory to the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# The C library is asked four times for 64 MiB, which are written to and freed: pages that it had not kept are counted.
PROBE = """
import ctypes, resource, sys
from scaledyolo.train.machine import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else False)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    block = libc.malloc(2**26)
    libc.memset(block, 1, 2**26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def probe(mode: str, **more: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC", "LD_PRE"))}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True, env={**clean, **more}
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks of the GNU C library")
def test_freed_memory_is_kept_unless_the_user_decided() -> None:
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    kept, faults = probe("keep")
    assert kept == "True"
    assert faults < 1.2 * pages, "only the first round needs new pages"
    assert probe("leave")[1] > 3 * pages
    assert probe("keep", MALLOC_ARENA_MAX="2")[0] == "False"
