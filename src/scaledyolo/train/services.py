"""Where scalars go besides the run folder: TensorBoard always, Weights & Biases and MLflow by name.

A resumed training goes on in the same run of the service: its id lies in the run folder. Both services are used through
Lightning's loggers and obey their own environment variables (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scaledyolo.errors import MissingPackageError, ScaledYoloError, UsageError, nearest
from scaledyolo.files import atomic_file

PROJECT = "scaledyolo"


class ServiceError(ScaledYoloError):
    """A log service refused; says which and why."""


def _wandb(folder: Path) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    path = folder / "wandb.id"
    if not path.is_file():
        _write(path, uuid.uuid4().hex[:8])
    return WandbLogger(
        name=folder.name, project=PROJECT, save_dir=folder, id=path.read_text(encoding="utf-8").strip(), resume="allow"
    )


def _mlflow(folder: Path) -> Any:
    from lightning.pytorch.loggers import MLFlowLogger

    # One database for all runs beside each other, as `mlflow ui` shows them; folders of files are given up by MLflow 3.
    beside = folder.absolute().parent
    path = folder / "mlflow.id"
    logger = MLFlowLogger(
        experiment_name=PROJECT,
        run_name=folder.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside / 'mlflow.db'}",
        artifact_location=None if "MLFLOW_TRACKING_URI" in os.environ else (beside / "mlartifacts").as_uri(),
        run_id=path.read_text(encoding="utf-8").strip() if path.is_file() else None,
    )
    _write(path, str(logger.run_id))
    return logger


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


SERVICES: Mapping[str, Callable[[Path], Any]] = {"wandb": _wandb, "mlflow": _mlflow}


def open_services(names: tuple[str, ...], folder: Path, parameters: Mapping[str, Any] | None = None) -> list[Any]:
    """Loggers by name, TensorBoard first.

    Args:
        names: of the services.
        folder: of the run.
        parameters: plain values that the services show beside the run.

    Raises:
        UsageError: there is no such service.
        MissingPackageError: its package is not installed.
        ServiceError: it cannot be reached or refuses.
    """
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    loggers: list[Any] = [TensorBoardLogger(folder, name="tensorboard", version="")]
    for name in names:
        if name not in SERVICES:
            raise UsageError(f"there is no log service {name!r}.{nearest(name, SERVICES)}")
        try:
            logger = SERVICES[name](folder)
            logger.log_hyperparams(dict(parameters or {}))
        except ImportError as error:
            raise MissingPackageError(
                f"--log {name} needs more packages ({error}); pip install lightning {name}"
            ) from None
        except ScaledYoloError:
            raise
        except Exception as error:  # each service has errors of its own, with no base in common
            reason = " ".join(str(error).split())[:300]
            raise ServiceError(f"--log {name}: the service refused: {reason or type(error).__name__}") from error
        loggers.append(logger)
    return loggers
