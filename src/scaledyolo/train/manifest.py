"""``run.json``: what was run, on what and with what; a person reads it, and a resumed run starts from it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo_v7 import deploy_form
from scaledyolo.data.plugins import transform_fingerprint
from scaledyolo.errors import CheckpointError, ScaledYoloError, UsageError
from scaledyolo.files import atomic_file
from scaledyolo.strict import from_mapping, to_mapping
from scaledyolo.train.machine import code_fingerprint, environment, git_commit
from scaledyolo.train.recipe import Recipe
from scaledyolo.train.settings import DataSource, Settings
from scaledyolo.train.transfer import Transfer

RUN_FILE = "run.json"
FORMAT = "scaledyolo-run/1"


@dataclass(frozen=True)
class Run:
    """Everything that decides a training, but the images themselves."""

    spec: ModelSpec
    recipes: tuple[Recipe, ...]  # one for each stage, in order
    settings: Settings
    data: DataSource | None = None  # None for data sets made in Python, whose run the command line cannot resume

    def __post_init__(self) -> None:
        if self.spec.head.auxiliary:
            raise UsageError(
                f"{self.spec.name}: auxiliary heads cannot be trained yet, as no loss reads them; train "
                f"{deploy_form(self.spec).name}, which has none"
            )

    def parameters(self) -> dict[str, Any]:
        """Network, seed and every value of the last recipe, flat, for the services that compare runs."""
        known = {"model": self.spec.name, "size": self.spec.size, "seed": self.settings.seed}
        return {**known, **_flat(to_mapping(self.recipes[-1]), "recipe.")}

    def facts(self, fingerprints: Mapping[str, str | None]) -> dict[str, Any]:
        """What a resumed run must have in common with the saved one, as plain values."""
        return {
            "spec": self.spec.to_dict(),
            "recipes": [to_mapping(recipe) for recipe in self.recipes],
            "seed": self.settings.seed,
            "data_fingerprints": dict(fingerprints),
            "transform": transform_fingerprint(self.settings.transform) if self.settings.transform else None,
        }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by points."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def completed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What :meth:`Run.facts` was when it was saved, with settings that exist since then at their defaults."""
    try:
        spec = ModelSpec.from_dict(facts["spec"]).to_dict()
        recipes = [to_mapping(from_mapping(Recipe, recipe, "recipe")) for recipe in facts["recipes"]]
    except (KeyError, TypeError, AttributeError, ScaledYoloError):
        return dict(facts)
    return {**facts, "spec": spec, "recipes": recipes}


def write_run(
    folder: Path,
    run: Run,
    *,
    fingerprints: Mapping[str, str | None],
    images: Mapping[str, int],
    report: Transfer | None,
    device: torch.device,
    processes: int,
) -> None:
    """Write ``run.json`` atomically.

    Raises:
        ScaledYoloError: the file cannot be written.
    """
    document = {
        "format": FORMAT,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **run.facts(fingerprints),
        "settings": to_mapping(run.settings),
        "data": None if run.data is None else to_mapping(run.data),
        "images": dict(images),
        "transfer": None if report is None else asdict(report),
        "code_fingerprint": code_fingerprint(),
        "git_commit": git_commit(),
        "environment": environment(device, processes),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    with atomic_file(folder / RUN_FILE) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def read_run(folder: Path) -> Run:
    """What :func:`write_run` wrote.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    path = folder / RUN_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: not the folder of a training, for it has no {RUN_FILE}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore it, or start a new run with --weights") from None
    where = str(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not written by this version; start a new run with --weights")
    try:
        data = document["data"]
        if isinstance(data, dict) and "path" in data:  # runs begun when there was one source
            data = {"paths": [data["path"]], **{key: value for key, value in data.items() if key != "path"}}
        return Run(
            spec=ModelSpec.from_dict(document["spec"]),
            recipes=tuple(from_mapping(Recipe, recipe, where, CheckpointError) for recipe in document["recipes"]),
            settings=from_mapping(Settings, document["settings"], where, CheckpointError),
            data=None if data is None else from_mapping(DataSource, data, where, CheckpointError),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, {error} is missing or wrong") from None
    except ScaledYoloError as error:
        raise CheckpointError(str(error)) from None
