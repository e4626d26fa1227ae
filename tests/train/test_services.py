"""Log services: what they are told, and each one for real, offline, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scaledyolo.cli import main
from scaledyolo.train import services


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Recorder:
    """The public interface of a Lightning logger."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.parameters: dict[str, Any] = {}
        self.ended: list[str] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append((step, metrics))

    def log_hyperparams(self, parameters: dict[str, Any]) -> None:
        self.parameters |= parameters

    def save(self) -> None:
        pass

    def finalize(self, status: str) -> None:
        self.ended.append(status)


def test_a_service_is_told_values_of_batches_epochs_and_recipe(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(services, "SERVICES", {"recorder": lambda folder: recorder})
    assert main(world.arguments(world.short_recipe(3, batch=1), "--log", "recorder")) == 0
    epochs = [(step, metrics) for step, metrics in recorder.metrics if "epoch/ap" in metrics]
    assert [step for step, _ in epochs] == [0, 1, 2]
    assert {"epoch/box", "epoch/ap50", "epoch/seconds"} <= epochs[0][1].keys()
    assert any("batch/lr" in metrics for _, metrics in recorder.metrics)
    assert recorder.parameters["recipe.schedule.epochs"] == 3
    assert recorder.parameters["recipe.augmentation.mosaic"] == 0.0
    assert (recorder.parameters["model"], recorder.parameters["seed"]) == ("narrow", 0)
    assert recorder.ended == ["success"]


def test_a_service_that_refuses_is_named(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(folder: Path) -> Any:
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(services, "SERVICES", {"mlflow": refuse})
    assert main(world.arguments(world.short_recipe(1), "--log", "mlflow")) == 2
    assert "--log mlflow: the service refused: no route to host" in capsys.readouterr().err
    monkeypatch.undo()
    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.loggers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(world.arguments(world.short_recipe(1), "--log", "mlflow")) == 2
    assert "pip install lightning mlflow" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_real_mlflow(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(world.arguments(world.short_recipe(2), "--log", "mlflow")) == 0
    runs = world.folder / "runs"
    assert main(["train", "--resume", str(runs / "train")]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "scaledyolo"]
    (run,) = client.search_runs([experiment.experiment_id])  # the resumed run is the same
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe.schedule.epochs"] == "2"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "epoch/ap")] == [0, 1]


@pytest.mark.filterwarnings("ignore")
def test_real_wandb(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main(world.arguments(world.short_recipe(2), "--log", "wandb")) == 0
    wandb.finish()
    folder = world.folder / "runs" / "train"
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert log.stem == f"run-{(folder / 'wandb.id').read_text().strip()}"
    content = log.read_bytes()
    for word in (b"epoch/ap", b"recipe.schedule.epochs", b"scaledyolo"):
        assert word in content
