"""Training for 8 bits: the forward pass rounds weights and maps as the exported network will, gradients pass through.

Integer arithmetic as in Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (arXiv 1712.05877), with the grids that NNCF gives OpenVINO, so that the plain export
in 8 bits finds what was trained: weights symmetric with one scale for each output channel; maps with one scale and zero
point, whose range is the mean over images of each image's least and greatest value. Here the images are those of the
batch: nothing is stored, a training that is taken up again goes on with the same bits, and the moving average needs no
ranges of its own.

A normalisation that is folded into a convolution multiplies each output channel by a number, and so its grid: rounding
before and after folding is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from scaledyolo.net.layers import Convolution

MAP_LEVELS: Final = 255  # steps between the ends of a map's range
WEIGHT_STEPS: Final = 127  # from zero to the greatest weight of a channel
# The first convolution gets half as many, lest sums of two products overflow 16 bits on processors without VNNI; its
# greatest weight lies half a step beyond the last.
FIRST_WEIGHT_STEPS: Final = 63
_LEAST_EXTENT: Final = 1e-30  # of a range; of a map that is zero everywhere the grid does not matter


def round_weight(weight: Tensor, *, first: bool = False) -> Tensor:
    """Weights (filters, channels, k, k) on the grid of their 8 bits; the gradient is that of the weights themselves.

    Args:
        weight: of a convolution.
        first: it reads the image.
    """
    steps = FIRST_WEIGHT_STEPS if first else WEIGHT_STEPS
    with torch.no_grad():
        greatest = weight.abs().amax((1, 2, 3)).clamp_min(_LEAST_EXTENT)
        scale = greatest / (steps + 0.5 * first)
        zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -steps, steps)
    return weight + (rounded - weight).detach()


def map_grid(values: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32), each of shape (), that a map gets; zero is always on the grid.

    Args:
        values: (batch, channels, height, width).
    """
    least = values.detach().amin((1, 2, 3)).float().mean().clamp_max(0)
    greatest = values.detach().amax((1, 2, 3)).float().mean().clamp_min(0)
    extent = (greatest - least).clamp_min(_LEAST_EXTENT)
    zero = (-least * MAP_LEVELS / extent).round()
    # To put zero on the grid, one end moves out.
    below = torch.where(zero > 0, -least / zero.clamp_min(1), extent / MAP_LEVELS)
    above = torch.where(zero < MAP_LEVELS, greatest / (MAP_LEVELS - zero).clamp_min(1), extent / MAP_LEVELS)
    return torch.maximum(below, above), zero.to(torch.int32)


def round_map(values: Tensor) -> Tensor:
    """A map (batch, channels, height, width) in 8 bits; the gradient is zero where values lie outside the range."""
    scale, zero = map_grid(values)
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, MAP_LEVELS)
    return rounded


class RoundedConvolution(Convolution):
    """A convolution that computes with its weights in 8 bits.

    Args:
        facts: those of :class:`~scaledyolo.net.layers.Convolution`.
        first: whether it reads the image.
    """

    def __init__(self, *facts: Any, first: bool) -> None:
        super().__init__(*facts)
        self.first = first

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(batch, channels, height, width) -> (batch, filters, height', width')."""
        weight = round_weight(self.weight, first=self.first)
        return self.finish(self._conv_forward(input, weight, self.bias))


def trained_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of the weights that a network in training for 8 bits really computes with.

    Written into a checkpoint they make its float network the one that was trained, and rounding them again changes
    nothing. Those of the first convolution are left out: their grid has no step at the greatest weight, so the next
    rounding would find another one; it has to start from the weights themselves.
    """
    for name, module in network.named_modules():
        if isinstance(module, RoundedConvolution) and not module.first:
            yield f"{name}.weight", round_weight(module.weight.detach())
