"""Two processes on a CPU (gloo) learn what one with the doubled batch learns, and say so when one is missing."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaledyolo.arch.lower import lower
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.data.formats import open_dataset
from scaledyolo.evaluate.coco import coco_metrics
from scaledyolo.evaluate.protocols import TRAINING
from scaledyolo.evaluate.run import ground_truth, predict
from scaledyolo.net.network import Network
from scaledyolo.train.loss import detection_loss, loss_gains
from scaledyolo.train.recipe import Assignment, Loss

LOSSES = ("box", "objectness", "class", "gradient_norm")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("rule", ["scaled", "yolov4"])
def test_the_mean_over_parts_of_a_batch_is_the_loss_of_the_batch(world: Any, rule: str) -> None:
    """One part has most of the objects, another none; values and gradients, in exact arithmetic but for rounding."""
    graph = lower(world.narrow_spec())
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(6, len(head.mask) * 8, 128 // stride, 128 // stride, generator=generator, requires_grad=True)
        for head, stride in zip(graph.detects, graph.strides, strict=True)
    ]
    image = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])[:, None]
    place = torch.rand(8, 2, generator=generator)
    size = torch.rand(8, 2, generator=generator) * 0.4 + 0.1
    targets = torch.cat((image, torch.arange(8)[:, None] % 3, place, size), 1)

    def loss(part: slice, mean_count: Any) -> Any:
        chosen = targets[(image[:, 0] >= part.start) & (image[:, 0] < part.stop)].clone()
        chosen[:, 0] -= part.start
        own = [raw[part] for raw in maps]
        parts = detection_loss(
            own, chosen, graph.detects, graph.strides, Loss(), Assignment(rule=rule), mean_count=mean_count
        )
        return parts.weighted(loss_gains(Loss(), 2, 3)).total(6)

    whole = loss(slice(0, 6), None)
    expected = torch.autograd.grad(whole, maps)

    parts = [slice(0, 2), slice(2, 4), slice(4, 6)]
    counts: list[torch.Tensor] = []
    for part in parts:  # what an all-reduce would bring together
        loss(part, lambda local: counts.append(local) or local.clamp(min=1))
    assert [int(count.sum()) == 0 for count in counts] == [False, False, True]
    mean = torch.stack(counts).mean(0)
    shared = sum(loss(part, lambda _: mean) for part in parts) / 3
    found = torch.autograd.grad(shared, maps)
    torch.testing.assert_close(shared, whole, rtol=1e-6, atol=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_two_processes_learn_what_one_learns_with_the_doubled_batch(world: Any) -> None:
    """Ten images in batches of four: the last is smaller. Normalisation keeps its statistics: SyncBN needs a GPU."""
    data = world.write_shapes(world.folder / "set", 10, val_count=7)
    recipe = world.short_recipe(4)
    options = ("--freeze-norm", "--device", "cpu")
    for out, more in (("one", ()), ("two", ("--devices", 2, "--timeout", 120))):
        done = world.run(*world.arguments(recipe, *options, *more, data=data, out=out))
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = world.folder / "one" / "train", world.folder / "two" / "train"
    assert [path.name for path in (world.folder / "two").iterdir()] == ["train"], "one folder for both processes"
    assert len(list((two / "tensorboard").iterdir())) == 1, "only the first process writes"
    assert json.loads((two / "run.json").read_text())["environment"]["processes"] == 2

    for alone, together in zip(rows(one), rows(two), strict=True):
        for name in LOSSES:
            assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-4), (name, alone["epoch"])
    weights, others = (load_checkpoint(folder / "last.safetensors").weights for folder in (one, two))
    for name in weights:
        np.testing.assert_allclose(others[name], weights[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert_evaluated_once(world, two, data)


def assert_evaluated_once(world: Any, folder: Path, data: Path) -> None:
    """The AP that two processes found together on seven images is that of one process over the same weights."""
    model = load_checkpoint(folder / "last.safetensors")
    network = Network(model.graph, logits=True).eval()
    network.load(model.weights)
    network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(batch: np.ndarray) -> list[np.ndarray]:
        return [raw.numpy() for raw in network(torch.from_numpy(batch))]

    dataset = open_dataset(data, "val")
    found = predict(dataset, run, model.graph.detects, 128, 128, TRAINING)
    metrics = coco_metrics(ground_truth(dataset), found)
    logged = rows(folder)[-1]
    assert float(logged["ap"]) == pytest.approx(metrics.ap, rel=1e-3, abs=1e-6)
    assert float(logged["ap50"]) == pytest.approx(metrics.ap50, rel=1e-3, abs=1e-6)


def test_shards_of_an_evaluation_cover_every_image_once(world: Any) -> None:
    dataset = open_dataset(world.shapes, "val")
    graph = lower(world.narrow_spec())
    seen: list[int] = []
    loud = [np.zeros((1, len(head.mask) * 8, 128 // s, 128 // s), np.float32) for head, s in
            zip(graph.detects, graph.strides, strict=True)]  # fmt: skip
    loud[0][:, 4, 0, 0] = loud[0][:, 5, 0, 0] = 9.0

    def run(batch: np.ndarray) -> list[np.ndarray]:
        return [np.repeat(raw, len(batch), 0) for raw in loud]

    for rank in range(3):
        found = predict(dataset, run, graph.detects, 128, 128, TRAINING, batch=2, indices=range(rank, 8, 3))
        mine = sorted(set(found.image_index[found.scores > 0.9].tolist()))
        assert mine == list(range(rank, 8, 3))
        seen += mine
    assert sorted(seen) == list(range(8))


LATE = """
import os, sys, time, torch
from scaledyolo.errors import ScaledYoloError
from scaledyolo.train.processes import Processes
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
processes = Processes(rank, 2, timeout=float(sys.argv[2]))
try:
    if sys.argv[1] == "meet":
        if rank == 0:
            processes.meet("the beginning of epoch 3")
        else:
            time.sleep(4)
    elif rank == 1:
        os._exit(0)  # as if it had crashed
    else:
        with processes.waiting("batch 7 of epoch 3"):
            for _ in range(3):
                processes.mean(torch.ones(3))
except ScaledYoloError as error:
    print(f"SENTENCE {error}", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("case", ["meet", "crash"])
def test_a_missing_process_is_named_with_the_place_where_the_other_waits(case: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    group = [
        subprocess.Popen(
            [sys.executable, "-c", LATE, case, "2"], env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = "".join(process.communicate(timeout=60)[0] for process in group)
    place = {"meet": "the beginning of epoch 3", "crash": "batch 7 of epoch 3"}[case]
    assert f"SENTENCE process 0 of 2 waited at {place} for the others, for at most 2 s" in said
    if case == "meet":
        assert "1" in said.partition("gave up")[2], "the missing rank is named"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="SyncBN needs two GPUs")
def test_two_gpus_share_the_statistics_of_normalisations(world: Any) -> None:
    data = world.write_shapes(world.folder / "set", 12)
    for out, devices in (("one", 1), ("two", 2)):
        arguments = world.arguments(world.short_recipe(3), "--device", "cuda", "--devices", devices, data=data, out=out)
        done = world.run(*arguments)
        assert done.returncode == 0, done.stderr[-3000:]
    for alone, together in zip(*(rows(world.folder / out / "train") for out in ("one", "two")), strict=True):
        for name in ("box", "objectness", "class"):
            assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-3), (name, alone["epoch"])
