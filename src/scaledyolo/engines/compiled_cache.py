"""Compiled models on disk, by the hash of everything that decides what they compute.

The key covers graph, weights, the code that lowers them, the runtime with its version, the processor and all compile
options: a cached model can be superfluous, never stale. Each file ends with the digest of its content, because a
runtime may crash on a damaged blob instead of refusing it. What was not used for longest goes first when the folder
outgrows its limit. The cache is a convenience: when the disk refuses, the model is simply compiled again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.graph_io import graph_to_dict
from scaledyolo.errors import ScaledYoloError
from scaledyolo.files import atomic_file, cache_folder
from scaledyolo.weights import Array

MAX_BYTES: Final = 2 << 30  # of the whole folder
_DIGEST_BYTES: Final = 32
# A change of any of these modules changes the models that they write.
_WRITERS: Final = (
    "arch/ops.py", "arch/training_parts.py", "convert/fold.py", "convert/reparameterise.py", "convert/onnx_writer.py",
    "convert/onnx_activations.py",
)  # fmt: skip


def network_digest(graph: Graph, weights: Mapping[str, Array]) -> str:
    """SHA-256 over the graph, every weight and the code that writes models."""
    digest = hashlib.sha256(_writers_digest())
    digest.update(json.dumps(graph_to_dict(graph), sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@functools.cache
def _writers_digest() -> bytes:
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in _WRITERS:
        with contextlib.suppress(OSError):  # inside a zip archive the version of the package has to do
            digest.update((package / name).read_bytes())
    return digest.digest()


class CompiledCache:
    """Blobs and small facts by key.

    Args:
        folder: where they lie; by default ``compiled`` in the cache (:func:`scaledyolo.files.cache_folder`).
        max_bytes: size that the folder is kept below; a single blob above it is not stored.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder or cache_folder("compiled")
        self.max_bytes = max_bytes

    @staticmethod
    def key(network: str, options: Mapping[str, Any]) -> str:
        """Name of a compiled model: ``network`` is a digest, ``options`` everything else that decides."""
        facts = json.dumps([network, dict(options)], sort_keys=True, default=str)
        return hashlib.sha256(facts.encode()).hexdigest()[:40]

    def load(self, key: str) -> bytes | None:
        """The blob of a key; None where there is none or it is damaged (then it is removed)."""
        path = self.folder / key
        try:
            content = path.read_bytes()
        except OSError:
            return None
        blob, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() != digest:
            self.remove(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of last use orders what goes first
        return blob

    def store(self, key: str, blob: bytes) -> bool:
        """Keep a blob; returns whether that was possible."""
        if len(blob) > self.max_bytes:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.folder / key) as temporary:
                temporary.write_bytes(blob + hashlib.sha256(blob).digest())
            self._shrink()
        except (OSError, ScaledYoloError):
            return False
        return True

    def remove(self, key: str) -> None:
        """Forget a key."""
        with contextlib.suppress(OSError):
            (self.folder / key).unlink()

    def _shrink(self) -> None:
        """Remove what was not used for longest until the folder is below its limit."""
        files = [(path, path.stat()) for path in self.folder.iterdir() if path.is_file()]
        total = sum(facts.st_size for _, facts in files)
        for path, facts in sorted(files, key=lambda item: item[1].st_mtime):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= facts.st_size
