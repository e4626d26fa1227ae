"""The networks among which a budget chooses, by the paper's order: {input size, stages} first, then {depth, width}.

Size and the number of stages decide what the network can see at all (paper section 3.3 and Table 7), depth and width
how well, within the time that is left (section 4.3). Each set of stages, depth and width is lowered once; what it costs
at another size or with another activation follows from its :mod:`.profile`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from scaledyolo.arch.cost import cost, receptive_fields
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activation
from scaledyolo.arch.scaling import ACTIVATION_WORK, num_stages, scaled, tiny_scaled, with_stages
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import ALIASES, ZOO, find, tiny
from scaledyolo.design.profile import FEATURES, LANES, Profile, Values, profile
from scaledyolo.errors import UsageError, nearest
from scaledyolo.model import SPEC_SUFFIXES, read_spec

AUTO: Final = "auto"
FAMILIES: Final = ("tiny", "csp", "p5", "p6", "p7")

# What is tried of each factor. Widths are those of YOLOv4-CSP (or of P5) times these, rounded up to full vectors.
WIDTHS: Final = tuple(Fraction(step, 16) for step in range(2, 25))
DEPTHS: Final = tuple(map(Fraction, ("1/8", "1/4", "3/8", "1/2", "5/8", "3/4", "1", "5/4", "3/2")))
GROWTHS: Final = tuple(range(8, 129, 8))  # g of the first block; 32 in yolov4-tiny
TINY_LEVELS: Final = (2, 3)
# Leaky costs nothing, Mish learns a little better; which of them a budget wants is decided by what Mish costs there.
ACTIVATIONS: Final[tuple[Activation, ...]] = ("leaky", "mish")
# The coarsest map has at least so many cells a side: the published networks have 10 (tiny at 320) to 20 (P6 at 1280).
LEAST_CELLS: Final = 8
_MOST_STAGES: Final = 8

_CHEAP, _COSTLY = FEATURES.index("cheap_activations"), FEATURES.index("costly_activations")


@dataclass(frozen=True)
class Network:
    """A network of a family without its input size: what was lowered once."""

    family: str  # "tiny", "csp", "p5", ..., or the name of the network that is scaled
    spec: ModelSpec  # at any fitting size
    stages: int
    depth: Fraction
    width: Fraction
    profile: Profile
    receptive_field: int  # pixels of the input that a cell of the coarsest head sees


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network at an input size with an activation: all that has to be said to build it."""

    network: Network
    size: int  # side of the square input in pixels
    activation: Activation

    @property
    def name(self) -> str:
        """What it is called in tables: its spec's name."""
        return f"{self.network.spec.name}-{self.activation}-{self.size}"

    @property
    def params(self) -> int:
        """Learned values."""
        return self.network.profile.cost.params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions for one image."""
        return self.network.profile.cost.resized(self.size, self.size).macs

    @property
    def gflops(self) -> float:
        """Giga floating-point operations of the convolutions for one image, 2 per MAC."""
        return 2 * self.macs / 1e9

    def inference_bytes(self, bytes_per_value: int) -> int:
        """Bytes of weights and live maps; see :meth:`.profile.Profile.inference_bytes`."""
        return self.network.profile.inference_bytes(self.size, bytes_per_value)

    def spec(self) -> ModelSpec:
        """The spec, valid and ready to be lowered; its anchors are the family's, in proportion to the size."""
        base, ratio = self.network.spec, self.size / self.network.spec.size
        return replace(
            base,
            name=self.name,
            size=self.size,
            activation=self.activation,
            neck_activation=None,
            anchors=tuple((round(width * ratio, 1), round(height * ratio, 1)) for width, height in base.anchors),
        )


def feature_matrix(candidates: Sequence[Candidate]) -> Values:
    """(n, len(FEATURES)) what the time of one image of each candidate is explained by; see :mod:`.profile`."""
    networks = {id(candidate.network): candidate.network for candidate in candidates}
    row = {key: index for index, key in enumerate(networks)}
    which = np.array([row[id(candidate.network)] for candidate in candidates], np.int64)
    area = np.array([candidate.size**2 for candidate in candidates], np.float64)
    fixed = np.stack([network.profile.fixed for network in networks.values()])
    per_pixel = np.stack([network.profile.per_pixel for network in networks.values()])
    values: Values = fixed[which] + per_pixel[which] * area[:, None]
    costly = np.array([bool(ACTIVATION_WORK[candidate.activation].transcendental) for candidate in candidates])
    activated = values[:, _CHEAP] + values[:, _COSTLY]
    values[:, _CHEAP], values[:, _COSTLY] = np.where(costly, 0.0, activated), np.where(costly, activated, 0.0)
    return values


@dataclass(frozen=True)
class Range:
    """What is enumerated.

    base: a family of :data:`FAMILIES`, "auto" (tiny and csp, and more stages where the size allows), or a network: zoo
    name or spec file. least, most: sides of the input in pixels, both included.
    """

    base: str = AUTO
    least: int = 256
    most: int = 640
    num_classes: int = 80
    activations: tuple[Activation, ...] = ACTIVATIONS
    widths: Sequence[Fraction] = WIDTHS
    depths: Sequence[Fraction] = DEPTHS
    growths: Sequence[int] = GROWTHS


def enumerate_candidates(wanted: Range) -> list[Candidate]:
    """Every candidate of a range, sizes and stages outermost.

    Raises:
        UsageError: the base is unknown (names the nearest), or the sizes are no sizes of its networks.
        SpecError: a spec given as base breaks a shape rule; names the node and the shapes.
    """
    networks = list(_networks(wanted))
    step = min(network.profile.max_stride for network in networks)
    for side in (wanted.least, wanted.most):
        _check_side(side, step)
    if wanted.least > wanted.most:
        raise UsageError(f"--size-range goes from the least to the largest side, got {wanted.least} {wanted.most}")
    found = [
        Candidate(network, size, activation)
        for size in range(wanted.least, wanted.most + 1, step)
        for network in networks
        if _fits(network, size, wanted)
        for activation in wanted.activations
    ]
    if not found:
        stride = max(network.profile.max_stride for network in networks)
        raise UsageError(
            f"{wanted.base} networks need an input of at least {LEAST_CELLS * stride} pixels "
            f"(stride {stride}); widen --size-range"
        )
    return found


def _fits(network: Network, size: int, wanted: Range) -> bool:
    """Whether the coarsest map has enough cells; what was asked for by name may have fewer."""
    stride = network.profile.max_stride
    return size % stride == 0 and (size >= LEAST_CELLS * stride or wanted.base not in (AUTO, *FAMILIES))


def _check_side(side: int, step: int) -> None:
    if side < step or side % step:
        below, above = max(side // step, 1) * step, (side // step + 1) * step
        near = f"{below} or {above}" if side > step else f"{step}"
        raise UsageError(f"--size-range: {side} is not a multiple of the largest stride {step}; use {near}")


def _networks(wanted: Range) -> Iterator[Network]:
    """Every network of the base, whatever its size: stages outermost, then depth, then width; no network twice."""
    seen: set[tuple[object, ...]] = set()
    for family, stages, depth, width, spec in _specs(wanted):
        spec = spec.with_classes(wanted.num_classes)
        key = (spec.stem, spec.stages, spec.neck, len(spec.masks[0]))
        if key not in seen:
            seen.add(key)
            yield network_of(spec, family, stages, depth, width)


@lru_cache(maxsize=4096)  # several budgets in one process look at the same networks
def network_of(
    spec: ModelSpec, family: str, stages: int, depth: Fraction = Fraction(1), width: Fraction = Fraction(1)
) -> Network:
    """A network with its figures, from one lowering at the least size at which it exists."""
    graph = lower(spec)
    fields = receptive_fields(graph)
    return Network(
        family=family,
        spec=spec,
        stages=stages,
        depth=depth,
        width=width,
        profile=profile(graph, cost(graph)),
        receptive_field=max(fields[head.name].size for head in graph.heads),
    )


_Described = tuple[str, int, Fraction, Fraction, ModelSpec]  # family, stages, depth, width, spec


def _specs(wanted: Range) -> Iterator[_Described]:
    base = wanted.base.lower()
    if base in (AUTO, "tiny"):
        yield from _tiny_specs(wanted)
    if base in (AUTO, "csp"):
        yield from _scaled_specs("csp", find("yolov4-csp"), 5, wanted)
    if base in ("p5", "p6", "p7"):
        yield from _scaled_specs(base, find("yolov4-p5"), int(base[1]), wanted)
    if base == AUTO:  # P5 itself is csp at another depth; from P6 on there is something new to see
        for stages in range(6, _MOST_STAGES + 1):
            if wanted.most >= LEAST_CELLS * 2**stages:
                yield from _scaled_specs(f"p{stages}", find("yolov4-p5"), stages, wanted)
    if base not in (AUTO, *FAMILIES):
        spec = _named(wanted.base)
        yield from _scaled_specs(spec.name, spec, num_stages(spec), wanted)


def _tiny_specs(wanted: Range) -> Iterator[_Described]:
    for levels in TINY_LEVELS:
        whole = tiny("yolov4-tiny" if levels == 2 else "yolov4-tiny-3l", levels=levels)
        for growth in wanted.growths:
            spec = tiny_scaled(whole, growth=growth)
            yield "tiny", num_stages(spec), Fraction(1), Fraction(growth, 32), spec


def _scaled_specs(family: str, whole: ModelSpec, stages: int, wanted: Range) -> Iterator[_Described]:
    if num_stages(whole) != stages:
        whole = with_stages(whole, stages)
    for depth in wanted.depths:
        for width in wanted.widths:
            name = f"{whole.name}-w{float(width):g}-d{float(depth):g}"
            spec = scaled(whole, depth=depth, width=width, multiple=LANES, name=name)
            yield family, stages, depth, width, spec


def _named(base: str) -> ModelSpec:
    """The spec of a zoo name or a spec file.

    Raises:
        UsageError: neither a family, a network of the zoo nor a spec file.
    """
    if Path(base).suffix.lower() in SPEC_SUFFIXES:
        spec = read_spec(Path(base))
        lower(spec)  # its shapes are checked before it is scaled
        return spec
    known = (AUTO, *FAMILIES, *ZOO, *ALIASES)
    if base.lower() not in known:
        hint = nearest(base.lower(), (AUTO, *FAMILIES)) or nearest(base.lower(), known)
        raise UsageError(
            f"there is no family {base!r}; give {', '.join((AUTO, *FAMILIES))}, a network of the zoo or a spec file."
            f"{hint}"
        )
    return find(base)
