"""Can this network learn anything at all from these images? One batch, learnt by heart, without augmentation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from scaledyolo.arch.lower import lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.data.augment import NO_AUGMENTATION
from scaledyolo.data.cache import ImageSource
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.loader import LoaderConfig, TrainLoader
from scaledyolo.net.initialise import initialise
from scaledyolo.net.network import Network
from scaledyolo.train.loss import detection_loss, loss_gains
from scaledyolo.train.recipe import Assignment, Loss

NEEDED_SHARE = 0.6  # of the first loss, below which the last must be; a healthy batch ends far lower


@dataclass(frozen=True)
class SelfTest:
    """How the loss of one batch fell. Losses are sums of the weighted parts of one image."""

    images: int
    boxes: int
    steps: int
    first_loss: float
    last_loss: float

    @property
    def passed(self) -> bool:
        """Whether the loss is a number and fell clearly."""
        return bool(np.isfinite(self.last_loss) and self.last_loss < NEEDED_SHARE * self.first_loss)

    def __str__(self) -> str:
        fell = f"the loss of one batch of {self.images} images with {self.boxes} boxes went from {self.first_loss:.3f}"
        return f"{fell} to {self.last_loss:.3f} in {self.steps} steps"


def overfit_one_batch(spec: ModelSpec, dataset: Dataset, *, batch: int = 4, steps: int = 30, seed: int = 0) -> SelfTest:
    """Train a fresh network on the same few images again and again.

    Args:
        spec: the network with the classes of the data, at the size to test.
        dataset: its first images that have boxes are taken.
        batch: so many of them.
        steps: of Adam.
        seed: of the weights.
    """
    spec = replace(spec, decoding="sigmoid-squared", scale_xy=())
    network = Network(lower(spec), logits=True)
    torch.manual_seed(seed)
    initialise(network, torch.Generator().manual_seed(seed))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    graph = network.graph
    with_boxes = np.flatnonzero(np.diff(dataset.annotations.offsets) > 0)[:batch]
    source = ImageSource(dataset.subset(with_boxes), spec.size)
    config = LoaderConfig(batch_size=len(with_boxes), size=spec.size, stride=graph.max_stride, seed=seed, workers=0)
    data = next(iter(TrainLoader(source, config, NO_AUGMENTATION).epoch(0)))
    images = torch.from_numpy(data.images).contiguous(memory_format=torch.channels_last).float().div_(255)
    targets = torch.from_numpy(data.targets)

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    gains = loss_gains(Loss(), len(graph.detects), graph.num_classes)
    losses = []
    for _ in range(steps):
        parts = detection_loss(network(images), targets, graph.detects, graph.strides, Loss(), Assignment())
        loss = parts.weighted(gains).total()
        losses.append(float(loss.detach()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return SelfTest(len(images), len(targets), steps, losses[0], losses[-1])
