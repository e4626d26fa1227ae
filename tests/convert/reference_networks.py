"""Independent torch models of the foreign networks: the large ones by module number, others from a cfg.

Written from the published description of the networks (blocks, numbers, names) alone; tests load this file by its path.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.convert.torch_pickle import ForeignCheckpoint
from scaledyolo.net.network import Network

# The large networks


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


class Conv(nn.Module):
    def __init__(self, cin: int, cout: int, k: int = 1, s: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, s, k // 2, bias=False)
        self.bn = norm(cout)
        self.act = Mish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c: int, hidden: int, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1 = Conv(c, hidden, 1)
        self.cv2 = Conv(hidden, c, 3)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class BottleneckCSP(nn.Module):
    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        h = c // 2
        self.cv1 = Conv(c, h, 1)
        self.cv2 = nn.Conv2d(c, h, 1, bias=False)
        self.cv3 = nn.Conv2d(h, h, 1, bias=False)
        self.cv4 = Conv(2 * h, c, 1)
        self.bn = norm(2 * h)
        self.act = Mish()
        self.m = nn.Sequential(*(Bottleneck(h, h) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        y1 = self.cv3(self.m(self.cv1(x)))
        return self.cv4(self.act(self.bn(torch.cat((y1, self.cv2(x)), 1))))


class BottleneckCSP2(nn.Module):
    def __init__(self, cin: int, c: int, n: int) -> None:
        super().__init__()
        self.cv1 = Conv(cin, c, 1)
        self.cv2 = nn.Conv2d(c, c, 1, bias=False)
        self.cv3 = Conv(2 * c, c, 1)
        self.bn = norm(2 * c)
        self.act = Mish()
        self.m = nn.Sequential(*(Bottleneck(c, c, shortcut=False) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return self.cv3(self.act(self.bn(torch.cat((self.m(x), self.cv2(x)), 1))))


class SPPCSP(nn.Module):
    def __init__(self, cin: int, c: int) -> None:
        super().__init__()
        self.cv1 = Conv(cin, c, 1)
        self.cv2 = nn.Conv2d(cin, c, 1, bias=False)
        self.cv3 = Conv(c, c, 3)
        self.cv4 = Conv(c, c, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.cv5 = Conv(4 * c, c, 1)
        self.cv6 = Conv(c, c, 3)
        self.bn = norm(2 * c)
        self.act = Mish()
        self.cv7 = Conv(2 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv4(self.cv3(self.cv1(x)))
        y = self.cv6(self.cv5(torch.cat([y, *(pool(y) for pool in self.m)], 1)))
        return self.cv7(self.act(self.bn(torch.cat((y, self.cv2(x)), 1))))


class Concat(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.cat(xs, 1)


class Detect(nn.Module):
    def __init__(self, nc: int, anchors: Tensor, channels: list[int]) -> None:
        super().__init__()
        self.nc = nc
        levels, per_level, _ = anchors.shape
        self.stride = torch.tensor([8.0 * 2**level for level in range(levels)], device="cpu")
        self.register_buffer("anchors", anchors / self.stride.view(-1, 1, 1))
        self.register_buffer("anchor_grid", anchors.clone().view(levels, 1, per_level, 1, 1, 2))
        self.m = nn.ModuleList(nn.Conv2d(c, per_level * (5 + nc), 1) for c in channels)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [conv(x) for conv, x in zip(self.m, xs, strict=True)]


class Model(nn.Module):
    """Modules in a row, each with the numbers of those it reads, as the yaml files of the large networks list them."""

    def __init__(self, stages: list[tuple[int, int]], neck: list[int], n: int, nc: int, anchors: Tensor, **kw: Any):
        super().__init__()
        rows: list[tuple[Any, nn.Module]] = []

        def add(module: nn.Module, source: Any = None) -> int:
            rows.append((len(rows) - 1 if source is None else source, module))
            return len(rows) - 1

        stem = stages[0][0] // 2
        add(Conv(3, stem, 3))
        taps, width = [], stem
        for number, (channels, depth) in enumerate(stages):
            add(Conv(width, channels, 3, 2))
            plain = kw.get("plain_first") and number == 0
            taps.append(add(Bottleneck(channels, channels // 2) if plain else BottleneckCSP(channels, depth)))
            width = channels
        levels = len(neck)
        taps, tap_widths = taps[-levels:], [channels for channels, _ in stages][-levels:]
        outputs = [0] * levels
        outputs[-1] = add(SPPCSP(width, neck[-1]))
        for level in reversed(range(levels - 1)):
            add(Conv(neck[level + 1], neck[level], 1))
            up = add(nn.Upsample(scale_factor=2, mode="nearest"))
            lateral = add(Conv(tap_widths[level], neck[level], 1), taps[level])
            add(Concat(), [lateral, up])
            outputs[level] = add(BottleneckCSP2(2 * neck[level], neck[level], n))
        heads = [add(Conv(neck[0], 2 * neck[0], 3))]
        for level in range(1, levels):
            down = add(Conv(neck[level - 1], neck[level], 3, 2), outputs[level - 1])
            add(Concat(), [down, outputs[level]])
            outputs[level] = add(BottleneckCSP2(2 * neck[level], neck[level], n))
            heads.append(add(Conv(neck[level], 2 * neck[level], 3)))
        add(Detect(nc, anchors, [2 * c for c in neck]), heads)
        self.sources = [source for source, _ in rows]
        self.model = nn.Sequential(*(module for _, module in rows))
        self.yaml = {"nc": nc}
        self.nc = nc
        self.names = kw.get("names", [f"thing {index}" for index in range(nc)])

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


CLASSES: dict[str, tuple[type, ...]] = {
    "models.common": (Conv, Bottleneck, BottleneckCSP, BottleneckCSP2, SPPCSP, Concat),
    "models.yolo": (Detect, Model),
    "mish_cuda": (Mish,),
}


# Networks built from a cfg


class Section(nn.Module):
    """Everything that the sections below need, named as in the code that builds networks from a cfg."""

    def __init__(self, kind: str, options: dict[str, str], channels: list[int]) -> None:
        super().__init__()
        self.kind, self.options = kind, options
        if kind == "convolutional":
            k, n = int(options["size"]), int(options["filters"])
            has_norm = options.get("batch_normalize") == "1"
            groups = int(options.get("groups", "1"))
            self.Conv2d = nn.Conv2d(
                channels[-1], n, k, int(options["stride"]), k // 2, groups=groups, bias=not has_norm
            )
            if has_norm:
                self.BatchNorm2d = nn.BatchNorm2d(n, eps=1e-4)
        if kind.startswith("implicit"):
            self.implicit = nn.Parameter(torch.randn(1, int(options["filters"]), 1, 1))

    def num_channels(self, channels: list[int]) -> int:
        if self.kind == "convolutional":
            return int(self.options["filters"])
        if self.kind.startswith("route"):
            total = sum(channels[index] for index in self.targets("layers", len(channels)))
            return total // (2 if self.kind == "route_lhalf" else int(self.options.get("groups", "1")))
        return channels[-1]

    def targets(self, key: str, here: int) -> list[int]:
        numbers = [int(word) for word in self.options[key].split(",")]
        return [number if number >= 0 else here + number for number in numbers]

    def forward(self, x: Tensor, outputs: list[Tensor], others: nn.ModuleList) -> Tensor:
        here = len(outputs)
        if self.kind == "convolutional":
            x = self.Conv2d(x)
            x = self.BatchNorm2d(x) if hasattr(self, "BatchNorm2d") else x
            act = self.options["activation"]
            return {"linear": lambda v: v, "mish": Mish(), "leaky": lambda v: F.leaky_relu(v, 0.1)}[act](x)
        if self.kind == "shortcut":
            return x + outputs[self.targets("from", here)[0]]
        if self.kind == "route":
            return torch.cat([outputs[index] for index in self.targets("layers", here)], 1)
        if self.kind == "route_lhalf":
            sources = [outputs[index] for index in self.targets("layers", here)]
            return torch.cat([source[:, : source.shape[1] // 2] for source in sources], 1)
        if self.kind == "maxpool":
            k = int(self.options["size"])
            return F.max_pool2d(x, k, 1, k // 2)
        if self.kind == "upsample":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.kind == "shift_channels":
            return x + others[self.targets("from", here)[0]].implicit
        if self.kind == "control_channels":
            return x * others[self.targets("from", here)[0]].implicit
        return x  # yolo, holders of implicit vectors


class Darknet(nn.Module):
    def __init__(self, cfg: str) -> None:
        super().__init__()
        sections: list[tuple[str, dict[str, str]]] = []
        for line in filter(None, (line.split("#")[0].replace(" ", "") for line in cfg.splitlines())):
            if line.startswith("["):
                sections.append((line.strip("[]"), {}))
            else:
                key, _, value = line.partition("=")
                sections[-1][1][key] = value
        channels = [3]
        self.module_list = nn.ModuleList()
        for kind, options in sections[1:]:
            module = Section(kind, options, channels)
            channels.append(module.num_channels(channels[1:] or [3]))
            self.module_list.append(module)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for module in self.module_list:
            x = module(x, outputs, self.module_list)
            outputs.append(x)
        return [out for out, module in zip(outputs, self.module_list, strict=True) if module.kind == "yolo"]


# Their files


def save(value: Any, path: Path, **options: Any) -> Path:
    """torch.save, while the classes live where those of the reference do, as far as the file tells."""
    homes = {cls: cls.__module__ for classes in CLASSES.values() for cls in classes}
    fakes = {module: ModuleType(module) for module in ("models", *CLASSES)}
    for module, classes in CLASSES.items():
        for cls in classes:
            cls.__module__ = module
            setattr(fakes[module], cls.__name__, cls)
    sys.modules.update(fakes)
    try:
        torch.save(value, path, **options)
    finally:
        for module in fakes:
            sys.modules.pop(module, None)
        for cls, home in homes.items():
            cls.__module__ = home
    return path


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Running statistics and affine parameters that make every tensor and its order matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval().requires_grad_(False)


def as_checkpoint(model: nn.Module) -> ForeignCheckpoint:
    """What a file of the model would give, all zeros and without memory."""
    anchors = {key: value.numpy() for key, value in model.state_dict().items() if key.endswith("anchor_grid")}
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    return ForeignCheckpoint({**zeros, **anchors}, "zip", "state dict", "model")


def assert_computes_the_same(path: Path, expected: list[Tensor], image: Tensor) -> None:
    checkpoint = load_checkpoint(path)
    graph = checkpoint.graph.with_size(*image.shape[2:])
    network = Network(graph).eval()
    network.load(checkpoint.weights)
    with torch.no_grad():
        ours = [value.numpy() for value in network(image)]
    session = onnxruntime.InferenceSession(to_onnx(graph, checkpoint.weights).SerializeToString())
    exported = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    for maps in (ours, exported):
        for found, wanted in zip(maps, expected, strict=True):
            scale = float(wanted.abs().max())
            np.testing.assert_allclose(found.reshape(wanted.shape), wanted.numpy(), rtol=0, atol=1e-4 * scale)
