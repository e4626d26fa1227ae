"""When the loss is no number: find out where it began, keep the batch, say so in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from scaledyolo.errors import ScaledYoloError
from scaledyolo.files import atomic_file


class NonFiniteError(ScaledYoloError):
    """The loss became infinite or no number; says in which tensor it began and where the batch was kept."""


class Guard:
    """Explains what is not finite.

    Args:
        network: the bare network.
        folder: of the run; receives the batch.
        rank: of this process; each keeps its own batch.
        autocast: gives the context in which the network runs.
    """

    def __init__(
        self,
        network: nn.Module,
        folder: Path,
        rank: int = 0,
        autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._network, self._autocast = network, autocast
        self._path = folder / (f"nonfinite-batch-{rank}.safetensors" if rank else "nonfinite-batch.safetensors")

    def explain(self, loss: Tensor, images: Tensor, targets: Tensor) -> NonFiniteError:
        """The error to raise for the loss of this batch, images (batch, 3, height, width) and targets (n, 6)."""
        if bool(torch.isfinite(loss)):
            return NonFiniteError("the loss of another process is not finite; its message says where it began")
        return self._error(f"the loss is {float(loss.detach())}", self._first_bad_tensor(images), images, targets)

    def explain_gradient(self, images: Tensor, targets: Tensor) -> NonFiniteError:
        """The error to raise where the loss of the last batch was finite and the gradient is not."""
        names = (name for name, value in self._network.named_parameters() if not _finite(value.grad))
        bad = next(names, "their sum")
        return self._error("the gradient is not finite", f"the gradient of {bad!r}", images, targets)

    def _error(self, what: str, began: str, images: Tensor, targets: Tensor) -> NonFiniteError:
        from safetensors.torch import save_file

        with atomic_file(self._path) as temporary:
            kept = {"images": images.float(), "targets": targets}
            save_file({name: value.detach().cpu().contiguous() for name, value in kept.items()}, temporary)
        return NonFiniteError(
            f"{what}; it began in {began}; the batch is kept in {self._path}; "
            "lower the learning rate, train in float32 (--precision 32), or look at the data (`scaledyolo doctor`)"
        )

    def _first_bad_tensor(self, images: Tensor) -> str:
        """The first of input, weights and outputs, in the order of the network, that is not finite."""
        if not _finite(images):
            return "the images"
        for name, value in self._network.state_dict().items():
            if not _finite(value):
                return f"the weights {name!r}"
        bad: list[str] = []
        hooks = [
            module.register_forward_hook(_watch(name, bad))
            for name, module in self._network.named_modules()
            if not list(module.children()) or hasattr(module, "weight")
        ]
        try:
            with torch.no_grad(), self._autocast():
                self._network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return f"the output of {bad[0]!r}" if bad else "the loss itself"


def _finite(value: Tensor | None) -> bool:
    return value is None or bool(torch.isfinite(value).all())


def _watch(name: str, bad: list[str]) -> Callable[[nn.Module, object, object], None]:
    def look(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and not bad and not _finite(output):
            bad.append(name)

    return look
