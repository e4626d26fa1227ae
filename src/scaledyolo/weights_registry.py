"""What is published where: names, addresses, sizes, checksums and licences of weights.

The data are in ``weights_registry.json`` beside this file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from scaledyolo.errors import UsageError, nearest

# Darknet headers are 16 or 20 bytes long, so a size computed from a network may be off by their difference.
HEADER_DIFFERENCE = 4


@dataclass(frozen=True)
class WeightsEntry:
    """One published file of weights.

    Attributes:
        name: key of the entry; equal to the name of the network in the zoo where a Darknet file of that form exists.
        file: name that the file gets in the cache; unique in the registry.
        licence: one phrase for the user.
        urls: addresses of the same file, in the order in which they are tried; http(s).
        page: page that a person has to open, where no address can be fetched.
        bytes: published size.
        bytes_of_network: size computed from the network, exact up to ``HEADER_DIFFERENCE``.
        checksum: ``"algorithm:hexadecimal digest"``, or None where none is known.
        trust: ``"A"`` several sources agree on the checksum, ``"B"`` one source, ``"none"``.
        seen_val2017: whether images of COCO val2017 were trained on, which flatters results there; None is unknown.
        model: name of the network in the zoo, where the zoo has it.
        kind: ``"detector"``, ``"backbone"`` or ``"training start"``.
        provenance: where the checksum comes from.
        note: what else a user should know, or "".
    """

    name: str
    file: str
    licence: str
    urls: tuple[str, ...] = ()
    page: str | None = None
    bytes: int | None = None
    bytes_of_network: int | None = None
    checksum: str | None = None
    trust: str = "none"
    seen_val2017: bool | None = None
    model: str | None = None
    kind: str = "detector"
    provenance: str = ""
    note: str = ""

    def accepts_size(self, size: int) -> bool:
        """Whether a file of ``size`` bytes can be the one that is meant."""
        if self.bytes is not None:
            return size == self.bytes
        return self.bytes_of_network is None or abs(size - self.bytes_of_network) <= HEADER_DIFFERENCE

    @property
    def expected_bytes(self) -> int | None:
        """Published size, else the computed one, else None."""
        return self.bytes if self.bytes is not None else self.bytes_of_network


@functools.cache
def weights_registry() -> Mapping[str, WeightsEntry]:
    """Return all entries by name."""
    text = resources.files("scaledyolo").joinpath("weights_registry.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return {name: _entry(name, record, content["licences"]) for name, record in content["weights"].items()}


def _entry(name: str, record: Mapping[str, Any], licences: Mapping[str, str]) -> WeightsEntry:
    values = {**record, "licence": licences[record["licence"]], "urls": tuple(record.get("urls", ()))}
    return WeightsEntry(name=name, **values)


def find_weights(name: str, registry: Mapping[str, WeightsEntry] | None = None) -> WeightsEntry:
    """Return the entry of that name; raises UsageError naming the nearest one."""
    known = weights_registry() if registry is None else registry
    if name not in known:
        raise UsageError(f"No published weights are known under the name {name!r}.{nearest(name, known)}")
    return known[name]
