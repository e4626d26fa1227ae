"""A detector within a budget of time: its ways to run are measured once, and the best that fits runs.

What is measured is what a user waits for: resizing, network, decoding and suppression of a photograph of 1280 x 720.
The figures are kept beside the compiled models, by network, engine and machine, so that only the first start takes
long. While it runs, :class:`scaledyolo.budget.Controller` watches, and changes over when the machine slows or recovers.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scaledyolo import __version__
from scaledyolo.arch.subnet import cut, subnet_names
from scaledyolo.budget import Controller, Rung, budget_milliseconds, ladder
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.engines.compiled_cache import CompiledCache, network_digest
from scaledyolo.engines.faithful import scene
from scaledyolo.engines.select import describe_engine
from scaledyolo.errors import UsageError
from scaledyolo.host import processor_name
from scaledyolo.model import load_model
from scaledyolo.runnable import ModelSource, Runnable, is_artefact
from scaledyolo.subnet import TRAINED_SUBNETS, subnet_checkpoint

if TYPE_CHECKING:
    from scaledyolo.detector import Detector
    from scaledyolo.postprocess import Candidates

ALL: Final = "all"  # in place of a subnet: every one may be used, approximate ones that did not learn along included
WARM_UPS, RUNS = 2, 5
LONGEST_SECONDS: Final = 2.0  # of the timed runs of one rung; a slow network gets fewer
HOPELESS: Final = 1.5  # times the budget; what is more expensive than a rung that takes this is not measured
_PHOTOGRAPH: Final = (720, 1280)  # pixels of the image on which is measured


def budget_model(
    model: ModelSource, subnet: str | None, *, names: Any = None, download: bool = False, several: bool = False
) -> Checkpoint:
    """The model whose parts and sizes a budget may choose from; arguments as those of ``Detector``.

    Raises:
        UsageError: an exported or opened network, which is fixed, or an ensemble (``several``).
    """
    if several:
        raise UsageError("a budget chooses the input of one network; leave the ensemble out, or the budget")
    if isinstance(model, Runnable):
        raise UsageError(f"{model.facts.name}: a network that is open is fixed; a budget needs the checkpoint")
    if isinstance(model, (str, os.PathLike)) and is_artefact(model):
        raise UsageError(f"{os.fspath(model)}: an exported network is fixed; a budget needs the checkpoint")
    checkpoint = model if isinstance(model, Checkpoint) else load_model(model, names=names, download=download)
    return subnet_checkpoint(checkpoint, subnet) if subnet not in (None, "", ALL) else checkpoint


def usable_subnets(checkpoint: Checkpoint, subnet: str | None) -> tuple[str, ...]:
    """The subnets that a budget may choose: exact ones, and approximate ones that learned along with the network.

    With ``subnet`` "all" every one there is; with any other name none, for then the choice is made.
    """
    known = subnet_names(checkpoint.graph)
    if subnet == ALL:
        return known
    if subnet:
        return ()
    trained = checkpoint.provenance.get(TRAINED_SUBNETS, "").split(", ")
    learned = {name.removesuffix("-zeros") for name in trained}  # the other fill computes the same
    return tuple(name for name in known if name in learned or cut(checkpoint.graph, name).exact)


class Budgeted:
    """The ways to run a detector that were measured, and the one that runs now.

    Args:
        rungs: ways to run, the most preferred first, with the milliseconds that each took.
        open_rung: a detector that runs this way.
        budget: milliseconds for an image.
    """

    def __init__(
        self, rungs: Sequence[tuple[Rung, float]], open_rung: Callable[[Rung], Detector], budget: float
    ) -> None:
        self.rungs = tuple(rung for rung, _ in rungs)
        self.controller = Controller(budget, [milliseconds for _, milliseconds in rungs])
        self._open_rung = open_rung
        self._lock = threading.Lock()

    @property
    def rung(self) -> Rung:
        """What runs now."""
        return self.rungs[self.controller.current]

    def candidates(self, images: Sequence[Any]) -> list[Candidates]:
        """What :meth:`Detector.candidates` gives on the current rung; its time decides about the next call."""
        index = self.controller.current
        detector = self._open_rung(self.rungs[index])
        started = time.perf_counter()
        found = detector.candidates(images)
        if images:
            milliseconds = 1e3 * (time.perf_counter() - started) / len(images)
            with self._lock:
                if self.controller.current == index:  # another thread may have changed it meanwhile
                    self.controller.observe(milliseconds)
        return found

    def __str__(self) -> str:
        """One line for people: what runs, how long it takes, how often that changed."""
        control = self.controller
        lately = control.median
        measured = control.expected[control.current]
        took = f"{measured:.1f} ms measured" if lately is None else f"{lately:.1f} ms lately"
        missed = "" if lately is None or lately <= control.budget else "; nothing that is faster is left"
        changes = f", {control.changes} changes so far" if control.changes else ""
        return f"budget {control.budget:.4g} ms an image: {self.rung}, {took}{changes}{missed}"


def keep_budget(
    detector: Detector,
    budget: str | float,
    model: ModelSource,
    subnet: str | None,
    open_one: Callable[..., Runnable],
    *,
    threads: int | None = None,
) -> Budgeted:
    """Measure what ``detector`` could run, and choose.

    Args:
        detector: opened on the whole of ``model`` at the largest size.
        budget: see :func:`scaledyolo.budget.budget_milliseconds`.
        model: from :func:`budget_model`.
        subnet: as given to the detector.
        open_one: opens a model in the engine that was asked for.
        threads: as given to the detector; part of what identifies a measurement.

    Raises:
        UsageError: not even the fastest way fits; it is named with its time.
    """
    assert isinstance(model, Checkpoint)
    checkpoint, wanted = model, budget_milliseconds(budget)
    networks = {"": detector.network}
    lock = threading.Lock()

    def open_rung(rung: Rung) -> Detector:
        with lock:
            if rung.subnet not in networks:
                networks[rung.subnet] = open_one(subnet_checkpoint(checkpoint, rung.subnet))
        return detector.looking_with(networks[rung.subnet], rung.height, rung.width)

    rungs = ladder(checkpoint.graph, detector.height, detector.width, usable_subnets(checkpoint, subnet))
    memory = _Memory(checkpoint, detector, threads)
    measured = _measured(rungs, open_rung, wanted, memory)
    fastest, milliseconds = measured[-1]
    if milliseconds > wanted:
        raise UsageError(
            f"{checkpoint.graph.name}: a budget of {wanted:.4g} ms an image cannot be kept on this machine; the "
            f"fastest there is, {fastest}, takes {milliseconds:.3g} ms"
        )
    return Budgeted(measured, open_rung, wanted)


def _measured(
    rungs: Sequence[Rung], open_rung: Callable[[Rung], Detector], wanted: float, memory: _Memory
) -> list[tuple[Rung, float]]:
    """Rungs with their milliseconds, from the cheapest up to the first that is hopeless; the best first."""
    found: list[tuple[Rung, float]] = []
    for rung in reversed(rungs):
        milliseconds = memory.recall(rung)
        # What would end in a refusal is not taken from memory: the machine may have been busy then.
        if milliseconds is None or (not found and milliseconds > wanted):
            milliseconds = measure(open_rung(rung))
            memory.keep(rung, milliseconds)
        found.append((rung, milliseconds))
        if milliseconds > HOPELESS * wanted:
            break
    return found[::-1]


def measure(detector: Detector) -> float:
    """Median milliseconds that a detector takes for one photograph, from pixels to boxes."""
    image = _photograph()
    for _ in range(WARM_UPS):
        detector.candidates([image])
    times: list[float] = []
    while len(times) < RUNS and sum(times) < LONGEST_SECONDS:
        started = time.perf_counter()
        detector.candidates([image])
        times.append(time.perf_counter() - started)
    return 1e3 * median(times)


def _photograph() -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = scene(3, *_PHOTOGRAPH, seed=0)
    return np.ascontiguousarray((255 * pixels).astype(np.uint8).transpose(1, 2, 0))


class _Memory:
    """Measured milliseconds on disk, by everything that decides them."""

    def __init__(self, checkpoint: Checkpoint, detector: Detector, threads: int | None) -> None:
        self._cache = CompiledCache()
        self._digest = network_digest(checkpoint.graph, checkpoint.weights)
        self._facts = {
            "fact": "milliseconds of an image",
            "version": __version__,
            "engine": describe_engine(detector.engine),
            "threads": threads,
            "views": len(detector.views),
            "machine": _machine(),
        }

    def recall(self, rung: Rung) -> float | None:
        """What was measured; None where nothing was."""
        known = self._cache.load(self._key(rung))
        return None if known is None else float(json.loads(known))

    def keep(self, rung: Rung, milliseconds: float) -> None:
        """Remember, if the disk allows."""
        self._cache.store(self._key(rung), json.dumps(milliseconds).encode())

    def _key(self, rung: Rung) -> str:
        return self._cache.key(self._digest, {**self._facts, "rung": [rung.subnet, rung.height, rung.width]})


def _machine() -> list[str]:
    """What tells this machine from others that share a home folder."""
    return [platform.node(), platform.machine(), processor_name(), str(os.cpu_count())]
