"""What was learnt about a machine, in the user's cache folder: its latency model and the networks measured so far.

One JSON file for each machine, engine, precision and number of threads. Removing the file, or ``scale --refresh``,
measures anew. The cache is a convenience: when the disk refuses, everything is simply measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scaledyolo.arch.spec import ModelSpec
from scaledyolo.bench.timing import Timing
from scaledyolo.design.device import DeviceFacts
from scaledyolo.design.latency import LatencyModel
from scaledyolo.errors import ScaledYoloError
from scaledyolo.files import atomic_file, cache_folder

_FORMAT: Final = "scaledyolo-device/1"


@dataclass
class Store:
    """Model and measurements of one machine; a store without a path forgets."""

    facts: DeviceFacts
    path: Path | None = None
    model: LatencyModel | None = None
    timings: dict[str, Timing] = field(default_factory=dict)  # by spec_key

    def timing(self, spec: ModelSpec) -> Timing | None:
        """What was measured of this network, if anything."""
        return self.timings.get(spec_key(spec))

    def remember(self, spec: ModelSpec, timing: Timing) -> None:
        """Keep a measurement, and write everything down."""
        self.timings[spec_key(spec)] = timing
        self.save()

    def save(self) -> None:
        """Write the file, if there is one and the disk allows it."""
        if self.path is None:
            return
        document = {
            "format": _FORMAT,
            "device": self.facts.to_dict(),
            "model": None if self.model is None else self.model.to_dict(),
            "timings_ms": {key: list(timing.samples_ms) for key, timing in self.timings.items()},
        }
        with contextlib.suppress(OSError, ScaledYoloError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path, durable=False) as temporary:
                temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")


def store_path(facts: DeviceFacts) -> Path:
    """Where a machine's file lies: ``design`` in the cache, named after what the machine is."""
    digest = hashlib.sha256(json.dumps(facts.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder("design") / f"{facts.engine}-{facts.device}-{facts.precision}-{digest}.json"


def open_store(facts: DeviceFacts, *, refresh: bool = False) -> Store:
    """What is known of a machine; nothing where nothing was written, it is damaged, or ``refresh`` is set."""
    path = store_path(facts)
    store = Store(facts, path)
    if refresh:
        return store
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ScaledYoloError):
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] == _FORMAT and document["device"] == facts.to_dict():
            model = document["model"]
            timings = {
                key: Timing(tuple(map(float, samples))) for key, samples in document["timings_ms"].items() if samples
            }
            store.model, store.timings = None if model is None else LatencyModel.from_dict(model), timings
    return store


def spec_key(spec: ModelSpec) -> str:
    """The digest of a network, whatever its name."""
    values = {key: value for key, value in spec.to_dict().items() if key != "name"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]
