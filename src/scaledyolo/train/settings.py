"""How a training is run, as opposed to what is learned and how, which the recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaledyolo.data.cache import CacheKind
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.problems import Policy
from scaledyolo.data.selection import open_pair
from scaledyolo.errors import UsageError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16", "16"]
OnNonFinite = Literal["stop", "rollback"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a training is run."""

    seed: int = 0
    device: Device = "auto"
    devices: int = 1  # processes on this machine
    nodes: int = 1  # machines
    precision: Precision = "auto"  # of forward and backward; auto: bf16 where the hardware has it, else 32
    workers: int = 1  # threads that prepare data
    cache: CacheKind = "ram"
    evaluate_every: int = 1  # epochs; the last epoch is always evaluated
    patience: int = 0  # epochs of the last stage without a better one after which to stop; 0: never
    save_every: float = 300.0  # seconds between saves within an epoch; every epoch is saved anyway
    on_nonfinite: OnNonFinite = "stop"
    freeze: int = 0  # backbone stages that stay as they are, the stem included
    freeze_norm: bool = False  # running statistics of normalisations stay as they are
    compile: bool = False
    services: tuple[str, ...] = ()
    transform: str = ""  # module:object of the user's own augmentation, which comes last; see data.plugins
    quiet: bool = False
    timeout: float = 1800.0  # seconds that a process waits for the others before it gives up

    def __post_init__(self) -> None:
        for name, least in (("devices", 1), ("nodes", 1), ("workers", 0), ("evaluate_every", 1), ("patience", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if self.freeze < 0 or self.save_every < 0 or self.timeout <= 0:
            raise UsageError("freeze and save-every must not be negative, and timeout must be greater than 0")

    @property
    def world_size(self) -> int:
        """Processes of all machines."""
        return self.devices * self.nodes


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where the images come from, so that a run can be taken up again."""

    paths: tuple[str, ...]  # data sets that are learnt from as one, their classes merged by name
    split: str = "train"  # see scaledyolo.data.selection
    val_split: str = "val"
    bad: Policy = "fix"

    def open(self) -> tuple[Dataset, Dataset]:
        """Images to learn from and images to choose the best epoch by, with the same classes.

        Raises:
            DataError: nothing usable is there, or the classes do not fit together.
            UsageError: a split cannot be understood.
        """
        return open_pair(self.paths, self.split, self.val_split, bad=self.bad)
