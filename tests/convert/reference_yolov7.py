"""Independent torch models of YOLOv7's networks, as they are trained and as they are deployed.

Written from the published description of the networks (blocks, numbers, names) alone; tests load this file by its path.
Every channel count may be divided by ``part``, so that the large ones can be computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


class Conv(nn.Module):
    def __init__(self, cin: int, cout: int, k: int = 1, s: int = 1, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, s, k // 2, bias=False)
        self.bn = norm(cout)
        self.act = act or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class RepConv(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.rbr_dense = nn.Sequential(nn.Conv2d(cin, cout, 3, 1, 1, bias=False), norm(cout))
        self.rbr_1x1 = nn.Sequential(nn.Conv2d(cin, cout, 1, 1, 0, bias=False), norm(cout))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.rbr_dense(x) + self.rbr_1x1(x))


class Concat(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.cat(xs, 1)


class Shortcut(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0] + xs[1]


class ReOrg(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        corners = ((0, 0), (1, 0), (0, 1), (1, 1))  # row, column
        return torch.cat([x[:, :, row::2, column::2] for row, column in corners], 1)


class DownC(nn.Module):
    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(c1, c1), Conv(c1, c2 // 2, 3, 2), Conv(c1, c2 // 2)
        self.mp = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.mp(x))), 1)


class SPPCSPC(nn.Module):
    def __init__(self, cin: int, c: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3, self.cv4 = Conv(cin, c), Conv(cin, c), Conv(c, c, 3), Conv(c, c)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.cv5, self.cv6, self.cv7 = Conv(4 * c, c), Conv(c, c, 3), Conv(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv4(self.cv3(self.cv1(x)))
        y = self.cv6(self.cv5(torch.cat([y, *(pool(y) for pool in self.m)], 1)))
        return self.cv7(torch.cat((y, self.cv2(x)), 1))


class Implicit(nn.Module):
    def __init__(self, channels: int, mean: float) -> None:
        super().__init__()
        self.implicit = nn.Parameter(mean + 0.3 * torch.randn(1, channels, 1, 1))


class Detect(nn.Module):
    """Detect, IDetect (``implicit``) and IAuxDetect (``auxiliary`` channels)."""

    def __init__(self, nc: int, anchors: Tensor, lead: Sequence[int], auxiliary: Sequence[int], implicit: bool) -> None:
        super().__init__()
        levels, per_level, _ = anchors.shape
        out = per_level * (5 + nc)
        strides = torch.tensor([8.0 * 2**level for level in range(levels)], device="cpu")
        self.register_buffer("anchors", anchors / strides.view(-1, 1, 1))
        self.register_buffer("anchor_grid", anchors.clone().view(levels, 1, per_level, 1, 1, 2))
        self.m = nn.ModuleList(nn.Conv2d(c, out, 1) for c in lead)
        if auxiliary:
            self.m2 = nn.ModuleList(nn.Conv2d(c, out, 1) for c in auxiliary)
        self.implicit = implicit
        if implicit:
            self.ia = nn.ModuleList(Implicit(c, 0.0) for c in lead)
            self.im = nn.ModuleList(Implicit(out, 1.0) for _ in lead)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = xs[: len(self.m)]
        if not self.implicit:
            return [conv(x) for conv, x in zip(self.m, xs, strict=True)]
        parts = zip(self.m, self.ia, self.im, xs, strict=True)
        return [conv(x + add.implicit) * factor.implicit for conv, add, factor, x in parts]


class Model(nn.Module):
    """Modules in a row, each with the numbers of those it reads."""

    def __init__(self, rows: list[tuple[Any, nn.Module]], nc: int) -> None:
        super().__init__()
        self.sources = [source for source, _ in rows]
        self.model = nn.Sequential(*(module for _, module in rows))
        self.nc, self.yaml = nc, {"nc": nc}
        self.names = [f"thing {index}" for index in range(nc)]

    def forward(self, x: Tensor) -> Any:
        outputs: list[Any] = []
        for source, module in zip(self.sources, self.model, strict=True):
            if isinstance(source, list):
                x = [outputs[index] for index in source]  # type: ignore[assignment]
            elif source >= 0:
                x = outputs[source]
            x = module(x)
            outputs.append(x)
        return x


class Builder:
    """Lists modules as the yaml files do."""

    def __init__(self, part: int, leaky: bool = False) -> None:
        self.rows: list[tuple[Any, nn.Module]] = []
        self.channels: list[int] = []
        self.part, self.leaky = part, leaky

    def add(self, module: nn.Module, channels: int, source: Any = None) -> int:
        self.rows.append((len(self.rows) - 1 if source is None else source, module))
        self.channels.append(channels)
        return len(self.rows) - 1

    def width(self, source: int | None) -> int:
        return (self.channels[-1] if self.channels else 3) if source is None else self.channels[source]

    def conv(self, cout: float, k: int = 1, s: int = 1, source: int | None = None) -> int:
        """``cout`` is that of the full network."""
        cout = int(cout / self.part)
        act = nn.LeakyReLU(0.1) if self.leaky else None
        return self.add(Conv(self.width(source), cout, k, s, act), cout, source)

    def pool(self, k: int = 2, s: int = 2, source: int | None = None) -> int:
        return self.add(nn.MaxPool2d(k, s, 0 if s == 2 else k // 2), self.width(source), source)

    def concat(self, *sources: int) -> int:
        return self.add(Concat(), sum(self.channels[index] for index in sources), list(sources))

    def elan(self, a: float, b: float, n: int, taps: str, cout: float, source: int | None = None) -> int:
        x = len(self.rows) - 1 if source is None else source
        y0, y1 = self.conv(a, source=x), self.conv(a, source=x)
        z = [self.conv(b, 3) for _ in range(n)]
        taken = {"all": z, "even": z[1::2]}[taps]
        self.concat(*reversed(taken), y1, y0)
        return self.conv(cout)

    def e_elan(self, *size: Any) -> tuple[int, int]:
        """The sum of two on one input, and the second of them."""
        x = len(self.rows) - 1
        first, second = self.elan(*size, x), self.elan(*size, x)
        return self.add(Shortcut(), self.channels[second], [second, first]), second

    def mp_down(self, h: float, *skip: int) -> int:
        x = len(self.rows) - 1
        self.pool()
        pooled = self.conv(h)
        self.conv(h, source=x)
        down = self.conv(h, 3, 2)
        return self.concat(down, pooled, *skip)

    def down_c(self, c2: float) -> int:
        c2 = int(c2 / self.part)
        return self.add(DownC(self.width(None), c2), c2)

    def spp_csp_c(self, c: float) -> int:
        c = int(c / self.part)
        return self.add(SPPCSPC(self.width(None), c), c)

    def up(self) -> int:
        return self.add(nn.Upsample(scale_factor=2, mode="nearest"), self.width(None))

    def rep(self, cout: float, source: int) -> int:
        cout = int(cout / self.part)
        return self.add(RepConv(self.width(source), cout), cout, source)

    def detect(self, nc: int, anchors: Tensor, lead: list[int], auxiliary: list[int], implicit: bool) -> Model:
        widths = [[self.channels[index] for index in group] for group in (lead, auxiliary)]
        self.add(Detect(nc, anchors, *widths, implicit), 0, [*lead, *auxiliary])
        return Model(self.rows, nc)


def tiny(anchors: Tensor, nc: int, training: bool, part: int) -> Model:
    b = Builder(part, leaky=True)
    b.conv(32, 3, 2)
    b.conv(64, 3, 2)
    b.elan(32, 32, 2, "all", 64)
    b.pool()
    p3 = b.elan(64, 64, 2, "all", 128)
    b.pool()
    p4 = b.elan(128, 128, 2, "all", 256)
    b.pool()
    top = b.elan(256, 256, 2, "all", 512)
    bypass, x = b.conv(256, source=top), b.conv(256, source=top)
    pools = [b.pool(k, 1, source=x) for k in (5, 9, 13)]
    b.concat(*reversed(pools), x)
    main = b.conv(256)
    b.concat(main, bypass)
    p5 = b.conv(256)
    outputs = []
    for cout, tap in ((128, p4), (64, p3)):
        b.conv(cout)
        up = b.up()
        b.concat(b.conv(cout, source=tap), up)
        outputs.append(b.elan(cout / 2, cout / 2, 2, "all", cout))
    n4, n3 = outputs
    b.concat(b.conv(128, 3, 2), n4)
    m4 = b.elan(64, 64, 2, "all", 128)
    b.concat(b.conv(256, 3, 2), p5)
    m5 = b.elan(128, 128, 2, "all", 256)
    heads = [b.conv(2 * c, 3, source=x) for c, x in ((64, n3), (128, m4), (256, m5))]
    return b.detect(nc, anchors, heads, [], training)


def p5(anchors: Tensor, nc: int, training: bool, part: int, *, x: bool = False) -> Model:
    w, n = (1.25, 6) if x else (1, 4)
    b = Builder(part)
    b.conv(32 * w, 3)
    b.conv(64 * w, 3, 2)
    b.conv(64 * w, 3)
    b.conv(128 * w, 3, 2)
    b.elan(64, 64, n, "even", 256 * w)
    taps = []
    for h, inner, cout in ((128, 128, 512), (256, 256, 1024), (512, 256, 1024)):
        b.mp_down(h * w)
        taps.append(b.elan(inner, inner, n, "even", cout * w))
    p5 = b.spp_csp_c(512 * w)

    def neck_elan(c: int) -> int:
        return b.elan(c, c, n, "even", c * w) if x else b.elan(c, c / 2, n, "all", c)

    outputs = []
    for cout, tap in ((256, taps[1]), (128, taps[0])):
        b.conv(cout * w)
        up = b.up()
        b.concat(b.conv(cout * w, source=tap), up)
        outputs.append(neck_elan(cout))
    n4, n3 = outputs
    b.mp_down(128 * w, n4)
    m4 = neck_elan(256)
    b.mp_down(256 * w, p5)
    m5 = neck_elan(512)
    ends = ((256, n3), (512, m4), (1024, m5))
    heads = [b.conv(c * w, 3, source=end) if x else b.rep(c, end) for c, end in ends]
    return b.detect(nc, anchors, heads, [], training)


P6 = {  # width, number of 3x3 convolutions, DownC, doubled
    "yolov7-w6": (1.0, 4, False, False),
    "yolov7-e6": (1.25, 6, True, False),
    "yolov7-d6": (1.5, 8, True, False),
    "yolov7-e6e": (1.25, 6, True, True),
}


def p6(name: str, anchors: Tensor, nc: int, training: bool, part: int) -> Model:
    w, n, down_c, doubled = P6[name]
    b = Builder(part)
    seen: dict[int, int] = {}  # what auxiliary heads read of an output

    def down(c: float) -> int:
        return b.down_c(c * w) if down_c else b.conv(c * w, 3, 2)

    def elan(a: float, inner: float, taps: str, cout: float) -> int:
        size = (a, inner, n, taps, cout * w)
        if not doubled:
            out = b.elan(*size)
            seen[out] = out
            return out
        out, before = b.e_elan(*size)
        seen[out] = before
        return out

    b.add(ReOrg(), 12)
    b.conv(64 * w, 3)
    taps = []
    for cout, inner in ((128, 64), (256, 128), (512, 256), (768, 384), (1024, 512)):
        down(cout)
        taps.append(elan(inner, inner, "even", cout))
    outputs = {6: b.spp_csp_c(512 * w)}
    seen[outputs[6]] = outputs[6]
    for level, cout in ((5, 384), (4, 256), (3, 128)):
        b.conv(cout * w)
        up = b.up()
        b.concat(b.conv(cout * w, source=taps[level - 2]), up)
        outputs[level] = elan(cout, cout / 2, "all", cout)
    auxiliary = [seen[outputs[level]] for level in (3, 4, 5, 6)]
    for level, cout in ((4, 256), (5, 384), (6, 512)):
        skip = outputs[level]
        b.concat(down(cout), skip)
        outputs[level] = elan(cout, cout / 2, "all", cout)
    heads = [b.conv(2 * c * w, 3, source=outputs[level]) for level, c in ((3, 128), (4, 256), (5, 384), (6, 512))]
    extra = []
    if training:
        wide = 1.25 if name == "yolov7-w6" else w
        extra = [b.conv(c * wide, 3, source=x) for c, x in zip((256, 512, 768, 1024), auxiliary, strict=True)]
    return b.detect(nc, anchors, heads, extra, training)


def model(name: str, anchors: Tensor, *, nc: int, training: bool, part: int = 1) -> Model:
    if name == "yolov7-tiny":
        return tiny(anchors, nc, training, part)
    if name in P6:
        return p6(name, anchors, nc, training, part)
    return p5(anchors, nc, training, part, x=name == "yolov7x")


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Running statistics and affine parameters that make every tensor and its order matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, fan_in**-0.5, generator=generator)
    return network.eval().requires_grad_(False)


def merged(rep: RepConv) -> tuple[np.ndarray, np.ndarray]:
    """K = K3 γ3/σ3 + pad(K1 γ1/σ1), b = Σ (β − μ γ/σ), in float64."""
    kernel, bias = 0.0, 0.0
    for conv, bn in (rep.rbr_dense, rep.rbr_1x1):
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
        kernel = kernel + (F.pad(weight, [1, 1, 1, 1]) if conv.kernel_size == (1, 1) else weight)
        bias = bias + bn.bias.double() - bn.running_mean.double() * scale
    return kernel.numpy(), bias.numpy()
