"""Everything a training needs to go on exactly where it stopped, in one safetensors file.

Tensors: ``weights/<parameter>`` (raw), ``ema/<parameter>``, ``optimizer/<parameter>/<slot>``, ``random/<source>``.
Metadata: the progress, the recipe, the fingerprint of the data, the scaler, as JSON. Written only between optimiser
steps, so that no gradient is pending; written atomically, so that a kill at any moment leaves the old file or the new.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from scaledyolo.errors import CheckpointError, OutputError
from scaledyolo.files import atomic_file
from scaledyolo.strict import from_mapping, to_mapping
from scaledyolo.train.progress import Progress

FORMAT = "scaledyolo-training/1"


def save_state(
    path: Path,
    *,
    network: nn.Module,
    ema: AveragedModel,
    optimizer: Optimizer,
    progress: Progress,
    facts: Mapping[str, Any],
    scaler: Mapping[str, Any] | None = None,
) -> None:
    """Write the whole state of a training atomically; ``facts`` are plain values that a resume compares or reads.

    Raises:
        ScaledYoloError: the file cannot be written; the old one is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"weights/{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in ema.module.state_dict().items()}
    slots, scalars = _optimizer_state(network, optimizer)
    tensors |= slots
    tensors["random/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    metadata = {
        "format": FORMAT,
        "progress": json.dumps(to_mapping(progress)),
        "facts": json.dumps(facts),
        "ema_averaged": str(int(ema.n_averaged)),
        "optimizer_scalars": json.dumps(scalars),
        "scaler": json.dumps(scaler),
    }
    # A clone: parameters may share memory with each other or be views, which the format refuses.
    plain = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    with atomic_file(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:  # how its writer reports a full disk
            raise OutputError(f"{path} cannot be written: {error}; nothing was changed") from None


@dataclass(frozen=True)
class SavedState:
    """The content of a state file."""

    path: Path
    tensors: Mapping[str, Tensor]
    progress: Progress
    facts: Mapping[str, Any]
    ema_averaged: int
    optimizer_scalars: Mapping[str, Mapping[str, float]]
    scaler: Mapping[str, Any] | None

    def restore(self, network: nn.Module, ema: AveragedModel, optimizer: Optimizer) -> None:
        """Put weights, moving average, optimiser and random generators back.

        Raises:
            CheckpointError: the state belongs to another network.
        """
        missing = {"random/torch"} - self.tensors.keys()
        if missing:
            raise CheckpointError(f"{self.path}: damaged, {missing.pop()} is missing")
        _load(network, self._part("weights/"), self.path)
        _load(ema.module, self._part("ema/"), self.path)
        ema.n_averaged.fill_(self.ema_averaged)
        names = {parameter: name for name, parameter in network.named_parameters()}
        slots: dict[str, dict[str, Tensor]] = {}  # by parameter
        for key, value in self._part("optimizer/").items():
            name, _, slot = key.rpartition("/")
            slots.setdefault(name, {})[slot] = value
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = slots.get(names[parameter], {})
                numbers = self.optimizer_scalars.get(names[parameter], {})
                if state or numbers:
                    # In the layout of the parameter: fused optimisers walk through both in the order of memory.
                    optimizer.state[parameter] = {
                        **{key: torch.empty_like(parameter).copy_(value) for key, value in state.items()},
                        **{key: torch.tensor(value) for key, value in numbers.items()},
                    }
        torch.set_rng_state(self.tensors["random/torch"])
        if "random/cuda" in self.tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.tensors["random/cuda"])

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def load_state(path: Path) -> SavedState:
    """Read a state file; nothing in it is executed.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; there is nothing to resume")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not the state of a training; resume from the state file of a run folder")
    try:
        return SavedState(
            path=path,
            tensors=tensors,
            progress=from_mapping(Progress, json.loads(metadata["progress"]), str(path), CheckpointError),
            facts=json.loads(metadata["facts"]),
            ema_averaged=int(metadata["ema_averaged"]),
            optimizer_scalars=json.loads(metadata["optimizer_scalars"]),
            scaler=json.loads(metadata["scaler"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: the description inside the file is damaged ({error})") from None


def _optimizer_state(network: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Tensor slots and scalar slots by the name of their parameter."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, float]] = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if isinstance(value, Tensor) and value.ndim:
                tensors[f"optimizer/{names[parameter]}/{slot}"] = value
            elif value is not None:
                scalars.setdefault(names[parameter], {})[slot] = float(value)
    return tensors, scalars


def _load(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = module.state_dict()
    for name, value in expected.items():
        found = tensors.get(name)
        if found is None or found.shape != value.shape:
            shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise CheckpointError(
                f"{path}: tensor {name!r} is {shape}, the network needs {tuple(value.shape)}; "
                "resume with the model and class count of the run"
            )
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(tensors[name])
