"""Training end to end on eight images: it learns them, writes what it promises, and its options do what they say."""

from __future__ import annotations

import csv
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.cli import main
from scaledyolo.data.formats import open_dataset
from scaledyolo.train.manifest import read_run
from scaledyolo.train.recipe import RECIPES, recipe_named
from scaledyolo.train.state import load_state


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_eight_images_are_learnt_in_under_two_minutes(world: Any, seed: int) -> None:
    """From scratch to AP50 above 0.95, and the files detect and evaluate as they are."""
    started = time.monotonic()
    recipe = world.short_recipe(120)
    assert main(world.arguments(recipe, "--seed", seed, "--evaluate-every", 60)) == 0
    assert time.monotonic() - started < 120
    folder = world.folder / "runs" / "train"
    assert float(rows(folder)[-1]["ap50"]) > 0.95
    assert load_checkpoint(folder / "last.safetensors").class_names == ("square", "disc", "triangle")


def test_last_and_best_work_in_detect_and_eval(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = world.short_recipe(60)
    assert main(world.arguments(recipe, "--evaluate-every", 20)) == 0
    folder = world.folder / "runs" / "train"
    capsys.readouterr()
    for name in ("last", "best"):
        model = folder / f"{name}.safetensors"
        protocol = ("--protocol", "training", "--json")
        assert main(["eval", str(model), "--data", str(world.shapes), "--split", "val", *protocol]) == 0
        figures = json.loads(capsys.readouterr().out)
        logged = [row["ap50"] for row in rows(folder) if row.get("ap50")]
        ap50 = next(value for key, value in figures.items() if key.lower() == "ap50")
        # Another engine, the same numbers.
        assert ap50 == pytest.approx(float(logged[-1] if name == "last" else max(logged)), abs=2e-3)
        images = str(world.shapes.parent / "images" / "train")
        assert main(["detect", images, "--model", str(model), "--save", "none"]) == 0
        assert "8 images" in capsys.readouterr().out


def test_a_run_leaves_a_table_a_manifest_and_tensorboard_files(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(world.arguments(world.short_recipe(2), "--seed", 5)) == 0
    folder = world.folder / "runs" / "train"
    table = rows(folder)
    assert [row["epoch"] for row in table] == ["1", "2"]
    for row in table:
        assert {"box", "objectness", "class", "gradient_norm", "images_per_s", "waiting", "ap", "ap50"} <= row.keys()
        assert all(np.isfinite(float(value)) for value in row.values())

    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["command"]
    assert manifest["seed"] == 5
    assert manifest["data_fingerprints"]["train"] == open_dataset(world.shapes, "train").fingerprint
    assert len(manifest["code_fingerprint"]) == 64
    assert "git_commit" in manifest
    assert manifest["images"] == {"train": 8, "val": 8}
    assert manifest["environment"]["packages"]["torch"] == torch.__version__
    run = read_run(folder)
    assert run.recipes == (world.short_recipe(2),)
    assert run.settings.seed == 5
    assert run.spec == world.narrow_spec()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    logged = {event.step: event.value for event in events.Scalars("epoch/box")}
    assert logged == pytest.approx({index: float(row["box"]) for index, row in enumerate(table)}, rel=1e-5)

    last_words = capsys.readouterr().err
    assert "peak memory" in last_words
    assert "waiting for data" in last_words


def test_half_precision_learns_too_and_nothing_but_the_run_speaks(world: Any) -> None:
    """In a process of its own, since libraries speak once: what is trained on what, epochs, the end."""
    done = world.run(*world.arguments(world.short_recipe(6), "--precision", "bf16", "--device", "cpu"))
    assert done.returncode == 0
    network, data, warning, *rest = done.stderr.splitlines()
    assert network.startswith("narrow ")
    assert data.startswith("8 images with 17 boxes to learn from")
    assert warning.startswith("warning: 8 of the 8 images to choose by are also learnt from")
    assert [line.split()[0] for line in rest] == ["epoch"] * 6 + ["6"]
    assert ["best.safetensors" in line for line in done.stdout.splitlines()] == [True] * 3  # it, and what to do with it
    first, *_, last = rows(world.folder / "runs" / "train")
    assert float(last["box"]) < 0.95 * float(first["box"])


def test_it_stops_early_when_nothing_gets_better(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = world.short_recipe(30).replace("optimiser.learning_rate=1e-9", "schedule.warmup_bias_rate=0")
    assert main(world.arguments(recipe, "--patience", 2)) == 0
    folder = world.folder / "runs" / "train"
    best = load_state(folder / "state.safetensors").progress.best_epoch
    assert len(rows(folder)) == best + 2 < 30
    assert "stopping early" in capsys.readouterr().err


def test_frozen_stages_stay_as_they_are(world: Any) -> None:
    assert main(world.arguments(world.short_recipe(1), "--seed", 1, out="first")) == 0
    start = world.folder / "first" / "train" / "last.safetensors"
    assert main(world.arguments(world.short_recipe(1), "--weights", start, "--freeze", 2)) == 0
    before = load_checkpoint(start).weights
    after = load_checkpoint(world.folder / "runs" / "train" / "last.safetensors").weights
    frozen = ("backbone.stem", "backbone.stage1.", "backbone.stage2.")
    kept = [name for name in before if name.startswith(frozen)]
    assert any("running_mean" in name for name in kept)
    assert all(np.array_equal(before[name], after[name]) for name in kept if "num_batches" not in name)
    assert not any(np.array_equal(before[n], after[n]) for n in before if n.endswith("conv.weight") and n not in kept)


def test_shapes_of_batches_vary_with_multi_scale_and_aspect(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from scaledyolo.train.training import Training

    seen: list[tuple[int, int]] = []
    original = Training.to_device

    def watch(self: Training, batch: Any) -> Any:
        seen.append(batch.images.shape[2:])
        return original(self, batch)

    monkeypatch.setattr(Training, "to_device", watch)
    recipe = world.short_recipe(4, multi_scale=0.5)
    assert main(world.arguments(recipe, out="scales")) == 0
    assert {side for shape in seen for side in shape} > {128}
    assert all(height == width and 64 <= height <= 192 and height % 32 == 0 for height, width in seen)

    seen.clear()
    data = world.write_shapes(world.folder / "wide", 8)
    for path in sorted((data.parent / "images" / "train").glob("*.png"))[:4]:
        assert cv2.imwrite(str(path), cv2.imread(str(path))[:64])
        path.with_name(path.name).touch()
        label = Path(str(path).replace("images", "labels")).with_suffix(".txt")
        label.write_text("0 0.5 0.5 0.2 0.4\n")
    assert main(world.arguments(world.short_recipe(2, rectangular=True), data=data, out="wide-run")) == 0
    assert set(seen) == {(64, 128), (128, 128)}


def test_images_of_classes_that_are_not_found_yet_come_more_often(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class weight: (1 - AP)² over the number of boxes; image weight: its sum over the boxes (specification 3.5)."""
    from scaledyolo.train.training import Training

    recipe = world.short_recipe(2, image_weights=True)
    seen: list[tuple[Training, np.ndarray]] = []
    original = Training.image_weights
    monkeypatch.setattr(Training, "image_weights", lambda self: seen.append((self, original(self))) or seen[-1][1])
    assert main(world.arguments(recipe)) == 0
    training, first = seen[0]
    notes = training.train_data.annotations
    counts = np.bincount(notes.class_ids, minlength=3)
    by_hand = [
        sum(1 / counts[class_id] for class_id in notes.class_ids[notes.rows(index)]) for index in range(len(notes))
    ]
    assert first == pytest.approx(by_hand)
    assert len(seen) == 2
    training.progress.class_ap = (1.0, 0.5, float("nan"))
    found = training.image_weights()
    expected = [
        sum((0.0, 0.25, 1.0)[c] / counts[c] for c in notes.class_ids[notes.rows(index)]) for index in range(len(notes))
    ]
    least = min(weight for weight in expected if weight > 0)
    assert found == pytest.approx([weight or least for weight in expected])


def test_a_second_stage_goes_on_with_optimiser_and_schedule(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`large-finetune` is `large` and then half as long again, at a doubled rate, with larger zoom and mixup."""
    stages = RECIPES["large-finetune"].stages()
    assert [stage.name for stage in stages] == ["large", "large-finetune"]
    assert [(stage.schedule.first_epoch, stage.schedule.epochs) for stage in stages] == [(0, 300), (300, 450)]
    assert stages[0] == RECIPES["large"]

    options = ["--recipe", "large-finetune", "--batch", 4, "--evaluate-every", 6, "--cache", "ram"]
    changes = ["schedule.first_epoch=4", "schedule.epochs=6", "optimiser.nominal_batch=4"]
    arguments = world.arguments(world.short_recipe(1), *options, "--set", *changes)
    arguments.remove("--recipe")
    arguments.remove(str(world.folder / "short.yaml"))
    assert main(arguments) == 0
    folder = world.folder / "runs" / "train"
    run = read_run(folder)
    first, second = run.recipes
    assert (first.schedule.epochs, second.schedule.first_epoch, second.schedule.epochs) == (4, 4, 6)
    assert first.optimiser.nominal_batch == second.optimiser.nominal_batch == first.batch == 4
    assert (first.augmentation.mixup, second.augmentation.mixup) == (0.0, 0.2)
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3", "4", "5", "6"]
    assert [bool(row["ap"]) for row in rows(folder)] == [False, False, False, True, False, True]
    assert load_state(folder / "state.safetensors").progress.step == 12
    assert load_checkpoint(folder / "last.safetensors").provenance["recipe"] == "large, then large-finetune"


def test_epochs_on_the_command_line_scale_both_stages() -> None:
    from scaledyolo.cli.train import Train

    for epochs, begin in ((45, 30), (900, 600)):
        recipe, changes = Train(recipe="large-finetune", epochs=epochs)._recipe()
        assert (recipe.schedule.first_epoch, recipe.schedule.epochs) == (begin, epochs)
        assert recipe.stages(*changes)[0].schedule.epochs == begin


def test_weights_of_another_class_count_are_taken_layer_by_layer(
    world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(world.arguments(world.short_recipe(1))) == 0
    start = world.folder / "runs" / "train" / "last.safetensors"
    data = world.write_shapes(world.folder / "two", 4)
    text = data.read_text().replace("- triangle\n", "")
    assert text != data.read_text()
    data.write_text(text)
    for label in (data.parent / "labels" / "train").glob("*.txt"):
        label.write_text("\n".join(line for line in label.read_text().splitlines() if line[0] != "2"))
    capsys.readouterr()
    assert main(world.arguments(world.short_recipe(1), "--weights", start, data=data, out="two-run")) == 0
    said = capsys.readouterr().err
    assert "took" in said
    assert "head" in said.partition("fresh:")[2]
    assert load_checkpoint(world.folder / "two-run" / "train" / "last.safetensors").class_names == ("square", "disc")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a compiler")
def test_a_compiled_network_trains_to_the_same_loss(world: Any) -> None:
    recipe = world.short_recipe(1)
    for out, more in (("plain", ()), ("compiled", ("--compile",))):
        done = world.run(*world.arguments(recipe, *more, out=out))
        assert done.returncode == 0, done.stderr[-2000:]
    plain, compiled = (rows(world.folder / out / "train")[0] for out in ("plain", "compiled"))
    for name in ("box", "objectness", "class"):
        assert float(compiled[name]) == pytest.approx(float(plain[name]), rel=1e-3)


@pytest.mark.slow
def test_memory_stays_flat_over_200_epochs(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import scaledyolo.train.loop as loop

    resident: list[int] = []
    original = loop.finish_epoch

    def watch(*arguments: Any) -> Any:
        found = original(*arguments)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        return found

    monkeypatch.setattr(loop, "finish_epoch", watch)
    assert main(world.arguments(world.short_recipe(200), "--evaluate-every", 10)) == 0
    early, late = max(resident[20:60]), max(resident[-40:])
    assert late - early < 8 * 2**20, f"grew from {early / 2**20:.0f} to {late / 2**20:.0f} MiB"


def test_a_recipe_file_with_an_unknown_key_names_the_nearest(world: Any) -> None:
    path = world.write_recipe(replace(world.short_recipe(), name="odd"))
    path.write_text(path.read_text().replace("epochs:", "epocs:", 1))
    with pytest.raises(Exception, match="unknown key 'epocs' in schedule. Did you mean 'epochs'"):
        recipe_named(str(path))
