"""When the loss is no number: find out where it began, keep the batch, say so in one sentence."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from scaledyolo.checkpoint import atomic_file
from scaledyolo.errors import ScaledYoloError


class NonFiniteError(ScaledYoloError):
    """The loss became infinite or no number; says in which tensor it began and where the batch was kept."""


class Guard:
    """Explains a loss that is not finite; ``folder`` receives the batch."""

    def __init__(self, network: nn.Module, folder: Path) -> None:
        self._network, self._folder = network, folder

    def explain(self, loss: Tensor, images: Tensor, targets: Tensor) -> NonFiniteError:
        """The error to raise for this batch, images (batch, 3, height, width) and targets (n, 6); keeps the batch."""
        path = self._folder / "nonfinite-batch.safetensors"
        self._keep(path, images, targets)
        return NonFiniteError(
            f"the loss is {float(loss)}; it began in {self._first_bad_tensor(images)}; the batch is kept in {path}; "
            "lower the learning rate, train in float32 (--precision 32), or look at the data (`scaledyolo doctor`)"
        )

    def _keep(self, path: Path, images: Tensor, targets: Tensor) -> None:
        from safetensors.torch import save_file

        with atomic_file(path) as temporary:
            save_file({"images": images.float().cpu().contiguous(), "targets": targets.cpu().contiguous()}, temporary)

    def _first_bad_tensor(self, images: Tensor) -> str:
        """The first of input, weights and outputs, in the order of the network, that is not finite."""
        if not bool(torch.isfinite(images).all()):
            return "the images"
        for name, value in self._network.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                return f"the weights {name!r}"
        bad: list[str] = []
        hooks = [
            module.register_forward_hook(_watch(name, bad))
            for name, module in self._network.named_modules()
            if not list(module.children()) or hasattr(module, "weight")
        ]
        try:
            with torch.no_grad():
                self._network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return f"the output of {bad[0]!r}" if bad else "the loss itself"


def _watch(name: str, bad: list[str]):  # type: ignore[no-untyped-def]
    def look(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not bad and not bool(torch.isfinite(output).all()):
            bad.append(name)

    return look
