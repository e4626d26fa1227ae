"""Several processes that train one network: starting them, what they tell each other, and who waits where.

Lightning Fabric starts them, by itself (``--devices N``) or under torchrun, and averages their gradients. With one
process everything here does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from scaledyolo.errors import ScaledYoloError
from scaledyolo.train.machine import device_type, keep_freed_memory, resolve_precision
from scaledyolo.train.settings import Settings

_FABRIC_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
# How the back ends of torch.distributed say that somebody did not come.
_LOST = re.compile(r"tim(ed|e) ?out|connection (closed|reset|refused)|broken pipe|monitoredBarrier|peer", re.IGNORECASE)


class ProcessError(ScaledYoloError):
    """Another process of the training did not come; says which one waited, where and how long."""


def launch(settings: Settings) -> Fabric:
    """Start the processes of a training; each of them runs on from here.

    Raises:
        UsageError: the precision does not exist on this device.
    """
    for name in ("lightning.fabric", "lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it announces its precision and every process otherwise
    device = device_type(settings.device)
    precision = resolve_precision(settings.precision, device)
    if device == "cpu":
        keep_freed_memory()
    strategy = DDPStrategy(timeout=timedelta(seconds=settings.timeout)) if settings.world_size > 1 else "auto"
    fabric = Fabric(
        accelerator=device,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=strategy,
        precision=_FABRIC_PRECISION[precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


class Processes:
    """The processes of a training as one of them sees them."""

    def __init__(self, rank: int = 0, count: int = 1, timeout: float = 1800.0) -> None:
        self.rank, self.count, self.timeout = rank, count, timeout
        # Objects and meetings go over gloo, on the CPU: only it can say who is missing.
        self._group: Any = None
        if count > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    @classmethod
    def of(cls, fabric: Fabric, timeout: float) -> Processes:
        """Those that a Fabric has launched."""
        return cls(fabric.global_rank, fabric.world_size, timeout)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.count == 1:
            return values
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values / self.count

    def all_agree(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is true in every process."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=device)
        torch.distributed.all_reduce(votes)
        return bool(votes == self.count)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(gathered, value, group=self._group)
        return gathered

    def share_path(self, path: Path | None) -> Path:
        """The path that the first process names."""
        return Path(str(self.gather(None if path is None else str(path))[0]))

    def copy_first(self, module: nn.Module) -> None:
        """Give every process the parameters and statistics of the first."""
        if self.count == 1:
            return
        with torch.no_grad():
            for value in module.state_dict().values():
                torch.distributed.broadcast(value, src=0)

    def meet(self, place: str) -> None:
        """Wait until every process is at this place.

        Raises:
            ProcessError: somebody did not come in time.
        """
        if self.count == 1:
            return
        with self.waiting(place):
            limit = timedelta(seconds=self.timeout)
            torch.distributed.monitored_barrier(self._group, timeout=limit, wait_all_ranks=True)

    @contextlib.contextmanager
    def waiting(self, place: str) -> Iterator[None]:
        """Say in one sentence when an exchange with the other processes inside this block fails.

        Raises:
            ProcessError: somebody did not come in time, or ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _LOST.search(str(error)):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ProcessError(
                f"process {self.rank} of {self.count} waited at {place} for the others, for at most "
                f"{self.timeout:g} s, and gave up; look for the first error of another process ({reason})"
            ) from None
