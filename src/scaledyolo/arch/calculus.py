"""The paper's section 3 as formulas: what a computational layer costs, and what each way of scaling does to it.

All values are exact (integers or :class:`~fractions.Fraction`). As in the paper, a "FLOP" of Tables 1-3 is one
multiply-accumulate of a convolution, and normalisation and activation are free. w, h: width and height of the maps;
b: base channels; k: number of layers; g: growth rate, the channels that each dense layer adds.

:mod:`scaledyolo.arch.specimens` builds the same layers as graphs; the tests count those and find these formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, NamedTuple

from scaledyolo.errors import UsageError, nearest

# Tables 1 and 2: Res, ResX and Dark layers

# What the paper counts around the k layers of a CSP-ized stage, in units of whb²: a 1x1 from b to b/2 into the main
# path and a 1x1 from b/2 to b/2 behind it (the reading that gives 3/4). The other half passes untouched.
CSP_TRANSITIONS = Fraction(3, 4)

# The stage as the published networks have it: two 1x1 from b to b/2 (1), one behind the layers (1/4), one over the
# concatenation (1).
CSP_TRANSITIONS_PUBLISHED = Fraction(9, 4)

# The strided 3x3 in front of a stage, whole (b/2 to b channels at the output's resolution) and as the paper counts it.
DOWNSAMPLING = Fraction(9, 2)
DOWNSAMPLING_PAPER = Fraction(9, 4)


@dataclass(frozen=True, slots=True)
class ComputationalLayer:
    """A residual layer by its cost in units of whb² (paper Tables 1 and 2)."""

    name: str
    cost: Fraction  # of one layer on b channels
    csp_cost: Fraction  # of one layer inside a CSP stage, on b/2 channels

    def flops(self, k: int, *, w: int = 1, h: int = 1, b: int = 1) -> Fraction:
        """Multiply-accumulates of k layers."""
        return self.cost * k * w * h * b**2

    def csp_flops(
        self, k: int, *, w: int = 1, h: int = 1, b: int = 1, transitions: Fraction = CSP_TRANSITIONS
    ) -> Fraction:
        """Multiply-accumulates of the CSP-ized stage of k layers."""
        return (transitions + self.csp_cost * k) * w * h * b**2

    def reduction(self, k: int, transitions: Fraction = CSP_TRANSITIONS) -> Fraction:
        """Share of the cost that CSP saves with k layers; negative where it costs more."""
        return 1 - self.csp_flops(k, transitions=transitions) / self.flops(k)

    @property
    def reduction_limit(self) -> Fraction:
        """The saving as k grows without bound: the figure that the paper's text quotes."""
        return 1 - self.csp_cost / self.cost

    def break_even(self, transitions: Fraction = CSP_TRANSITIONS) -> Fraction:
        """Number of layers at which the CSP stage costs as much as the plain one; it saves from above that on."""
        return transitions / (self.cost - self.csp_cost)


LAYERS: Mapping[str, ComputationalLayer] = MappingProxyType(
    {
        "res": ComputationalLayer("Res", Fraction(17, 16), Fraction(13, 16)),
        "resx": ComputationalLayer("ResX", Fraction(137, 128), Fraction(73, 128)),
        "dark": ComputationalLayer("Dark", Fraction(5), Fraction(5, 2)),
    }
)


def layer(name: str) -> ComputationalLayer:
    """The layer of that name: res, resx or dark.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in LAYERS:
        known = ", ".join(LAYERS)
        raise UsageError(f"there is no computational layer {name!r}; known are {known}.{nearest(name, LAYERS)}")
    return LAYERS[name]


def scaled_flops(*, size: Fraction | int = 1, depth: Fraction | int = 1, width: Fraction | int = 1) -> Fraction:
    """Factor on the cost of k layers when input side, number of layers and channels are multiplied (paper Table 1).

    The printed table has the headers of depth and width exchanged; its text and its formulas say what is done here.
    """
    return Fraction(size) ** 2 * Fraction(depth) * Fraction(width) ** 2


# Table 3: Dense and OSA layers, in multiply-accumulates for one position and one cell of the kernel


def dense_flops(b: int, g: int, k: int) -> int:
    """k dense layers: each reads all channels that came before it. gbk + g²k(k-1)/2."""
    return g * b * k + g**2 * k * (k - 1) // 2


def osa_flops(b: int, g: int, k: int) -> int:
    """k layers of one-shot aggregation: each reads its predecessor only. bg + g²(k-1)."""
    return b * g + g**2 * (k - 1)


# Tables 4 and 5: OSANet, CSPOSANet, and CSPOSANet partial in computational block (PCB)

OsaVariant = Literal["osa", "csp", "pcb"]
OSA_VARIANTS: tuple[OsaVariant, ...] = ("osa", "csp", "pcb")


class Channels(NamedTuple):
    """Input and output channels of one convolution; a half channel where a width does not divide by two."""

    inputs: Fraction
    outputs: Fraction


def channel_table(variant: OsaVariant, b: int, g: int, k: int) -> tuple[Channels, ...]:
    """Channels of the k layers and of the transition that follows them (paper Table 4).

    Raises:
        UsageError: there is no such variant.
    """
    if variant not in OSA_VARIANTS:
        known = ", ".join(OSA_VARIANTS)
        raise UsageError(f"there is no OSA variant {variant!r}; known are {known}.{nearest(variant, OSA_VARIANTS)}")
    growth, half = Fraction(g), Fraction(b + k * g, 2)
    transition = {
        "osa": Channels(2 * half, half),
        "csp": Channels(k * growth, k * growth),
        "pcb": Channels(half, half),
    }[variant]
    first = Channels(Fraction(b) if variant == "osa" else growth, growth)
    return (first, *[Channels(growth, growth)] * (k - 1), transition)


def cio(variant: OsaVariant, b: int, g: int, k: int) -> Fraction:
    """Convolutional input/output: the sum of input times output channels over the convolutions (paper Table 5).

    OSA: bg + (k-1)g² + (b+kg)²/2. CSP: kg² + (kg)². PCB: kg² + (b+kg)²/4.
    """
    return sum((one.inputs * one.outputs for one in channel_table(variant, b, g, k)), start=Fraction(0))


def pcb_beats_csp(b: int, g: int, k: int) -> bool:
    """Whether partial-in-computational-block has the lower CIO: (b+kg)/2 < kg, that is kg > b.

    The paper's kg > b/2 is too weak; b = 64, g = 16, k = 3 is a counterexample.
    """
    return k * g > b


def tiny_layers(growth_ratio: Fraction = Fraction(1, 2)) -> Fraction:
    """Number of layers k for which b/2 + kg = 2b, given g/b; 3 for the paper's g = b/2 (section 3.2)."""
    return Fraction(3, 2) / growth_ratio


def partition_width(b: int, g: int, k: int, tau: int) -> int:
    """Channels of each half of (b + kg), rounded up to the vector width of the hardware: ceil((b+kg) / 2tau) tau.

    Raises:
        UsageError: ``tau`` is not positive.
    """
    if tau < 1:
        raise UsageError(f"the hardware's vector width must be at least 1, got {tau}")
    return -(-(b + k * g) // (2 * tau)) * tau


# Equation 1: memory access cost


def memory_access_cost(height: int, width: int, kernel: int, inputs: int, outputs: int) -> int:
    """Values moved by a convolution: hw(Cin + Cout) + K Cin Cout, with K = ``kernel`` squared (paper Eq. 1)."""
    return height * width * (inputs + outputs) + kernel**2 * inputs * outputs


def minimum_memory_access(height: int, width: int, kernel: int, macs: int) -> float:
    """Least memory access of any convolution with that many multiply-accumulates, reached where Cin = Cout.

    With B = hwK Cin Cout fixed, Cin + Cout >= 2 sqrt(Cin Cout), so Eq. 1 is at least 2 sqrt(hwB / K) + B / hw.
    """
    area = height * width
    return 2 * math.sqrt(area * macs / kernel**2) + macs / area


# Tables 6 and 7: what can be scaled, and what it does to the receptive field

SCALING_FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "input": ("size",),
        "backbone": ("width", "depth", "number of stages"),
        "neck": ("width", "depth", "number of stages"),
    }
)


def receptive_field_gain(kernel: int, stride: int) -> int:
    """Input pixels that one more k x k convolution adds where neighbouring cells lie ``stride`` pixels apart."""
    return (kernel - 1) * stride


# Section 4.1: the neck


class NeckStage(NamedTuple):
    """Cost of a stage of the neck whose input is a concatenation of 2c channels, in units of whc²."""

    dark: int  # 1x1 2c-c, 3x3 c-2c, 1x1 2c-c, 3x3 c-2c, 1x1 2c-c
    csp: int  # 1x1 2c-c, a bypass 1x1 c-c, two pairs of 1x1 and 3x3 c-c, 1x1 2c-c

    @property
    def reduction(self) -> Fraction:
        """Share of the cost that the CSP form saves."""
        return 1 - Fraction(self.csp, self.dark)


NECK_STAGE = NeckStage(dark=2 + 18 + 2 + 18 + 2, csp=2 + 1 + 2 * (1 + 9) + 2)
