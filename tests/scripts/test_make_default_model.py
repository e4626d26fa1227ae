"""From a training's checkpoint to the shipped file and its card: the same bytes, the figures of `eval`, no paths."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scaledyolo import ZOO, Checkpoint, lower, save_checkpoint
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.classes import COCO_CATEGORY_IDS, COCO_NAMES
from scaledyolo.cli import main as scaledyolo
from scaledyolo.data.formats import open_dataset
from scaledyolo.default_model import TITLE_KEY
from scaledyolo.model import load_spec
from scaledyolo.train.recipe import recipe_named
from scaledyolo.weights import random_weights

SIDE = 64
COMMAND = "scaledyolo train --data coco_like --recipe card_recipe.yaml --model card_network.yaml"


@pytest.fixture
def maker(script):
    return script("make_default_model")


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set in COCO's format: noise, with boxes of a person and two cars on each image."""
    folder, rng = tmp_path / "coco_like", np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        (folder / split).mkdir(parents=True)
        images, notes = [], []
        for number in range(count):
            name = f"{split}/{number}.png"
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / name)
            images.append({"id": number + 1, "file_name": name, "width": 64, "height": 48})
            for category, box in ((1, [4, 4, 20, 30]), (3, [30, 8, 24, 16]), (3, [34, 30, 20, 14])):
                notes.append(
                    {"id": len(notes) + 1, "image_id": number + 1, "category_id": category, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
        categories = [{"id": number, "name": name} for number, name in zip(COCO_CATEGORY_IDS, COCO_NAMES, strict=True)]
        document = {"images": images, "annotations": notes, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


def checkpoint(data: Path, network: str = "yolov4-tiny", num_classes: int = 80) -> Checkpoint:
    """A random model as a training leaves it."""
    spec = replace(ZOO[network].with_classes(num_classes).with_size(SIDE), decoding="sigmoid-squared", scale_xy=())
    graph = lower(spec)
    train = open_dataset(data, "train")
    return Checkpoint(
        graph=graph,
        spec=spec,
        class_names=COCO_NAMES[:num_classes],
        weights=random_weights(graph, np.random.default_rng(0)),
        provenance={
            "source": "trained with scaledyolo", "recipe": "small", "epochs": "2", "seed": "3", "data": train.source,
            "data_fingerprint": train.fingerprint,
        },
    )  # fmt: skip


@pytest.fixture
def run(data, tmp_path, run_folder) -> Path:
    """The folder of a run with its best checkpoint."""
    folder = run_folder(
        tmp_path / "runs" / "train",
        command=[
            "/opt/bin/scaledyolo", "train", "--data", str(data), "--recipe", "/tmp/mine.yaml",
            "--out", str(tmp_path / "runs"),
        ],
        spec=checkpoint(data).spec.to_dict(),
        seed=3,
    )  # fmt: skip
    save_checkpoint(folder / "best.safetensors", checkpoint(data))
    return folder


@pytest.fixture
def make(maker, data, run, tmp_path) -> Callable[..., tuple[int, Path, Path]]:
    """Call the script; returns its exit code, the model and the card."""

    def call(*more: str) -> tuple[int, Path, Path]:
        out, card = tmp_path / "out" / "default.safetensors", tmp_path / "card.md"
        words = ("--data", str(data), "--out", str(out), "--card", str(card))
        return maker.main([str(run / "best.safetensors"), *words, *more]), out, card

    return call


def test_the_file_is_half_as_large_loads_everywhere_and_says_where_it_comes_from(make, run, tmp_path):
    code, out, _ = make()
    assert code == 0
    assert out.stat().st_size < 0.52 * (run / "best.safetensors").stat().st_size
    made, given = load_checkpoint(out), load_checkpoint(run / "best.safetensors")
    assert made.category_ids == COCO_CATEGORY_IDS
    assert (
        made.provenance[TITLE_KEY] == "yolov4-tiny by scaledyolo, 80 classes, trained from scratch on 3 images of COCO"
    )
    assert (made.provenance["seed"], made.provenance["commit"]) == ("3", "0123456789abcdef")
    assert made.provenance["command"] == COMMAND
    assert str(tmp_path).encode() not in out.read_bytes()
    for name, values in given.weights.items():
        # float16 keeps 11 bits; what has one dimension is kept whole.
        np.testing.assert_allclose(made.weights[name], values, rtol=2**-11 if values.ndim > 1 else 0, atol=1e-7)


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(maker, make, data, run, tmp_path):
    _, out, _ = make()
    other = tmp_path / "other.safetensors"
    words = (
        str(run / "best.safetensors"),
        "--data",
        str(data),
        "--out",
        str(other),
        "--card",
        str(tmp_path / "card.md"),
    )
    subprocess.run([sys.executable, maker.__file__, *words], check=True, timeout=120)
    assert other.read_bytes() == out.read_bytes()


def test_the_card_has_the_figures_that_eval_measures_on_the_file(make, data, tmp_path, capsys):
    code, out, card = make()
    assert code == 0
    capsys.readouterr()
    assert scaledyolo(["eval", str(out), "--data", str(data), "--json", "--engine", "onnxruntime"]) == 0
    figures = json.loads(capsys.readouterr().out)
    text = card.read_text()
    assert f"| all classes | **{figures['AP']:.3f}**" in text
    person = figures["class_ap"]["person"], figures["class_ap50"]["person"]
    assert f"| person | {person[0]:.3f} | {person[1]:.3f} |" in text
    assert f"| person | 3 | 2 | {person[0]:.3f} | {person[1]:.3f} |" in text
    assert "| toothbrush | 0 | 0 | - | - |" in text
    assert "3 boxes (33 %) are persons" in text
    assert f"$ {COMMAND}\n" in text
    assert "Not measured with this build" in text
    assert str(tmp_path) not in text
    for word in ("Flickr", "CC BY 4.0", "Apache-2.0"):
        assert word in text


def test_recipe_and_network_lie_beside_the_card_as_the_training_had_them(make, data):
    _, _, card = make()
    assert load_spec(card.with_name("card_network.yaml")) == checkpoint(data).spec
    recipe = recipe_named(str(card.with_name("card_recipe.yaml")))
    assert (recipe.name, recipe.batch) == ("small", 16)


def test_a_model_that_went_on_from_an_earlier_training_names_both(make, data, run, run_folder, tmp_path):
    start = run_folder(
        tmp_path / "start",
        command=["/opt/bin/scaledyolo", "train", "--data", str(data), "--recipe", "/tmp/first.yaml"],
        recipes=[{"name": "first", "batch": 8}],
        git_commit="fedcba98",
    )
    document = json.loads((run / "run.json").read_text())
    words = [*document["command"], "--weights", str(start / "best.safetensors"), "--seed", "3"]
    (run / "run.json").write_text(json.dumps({**document, "command": words, "transfer": {"taken": 99}}))
    code, out, card = make("--before", str(start))
    assert code == 0
    provenance, text = load_checkpoint(out).provenance, card.read_text()
    first = COMMAND
    second = COMMAND.replace("card_recipe", "card_recipe_2") + " --weights runs/train/best.safetensors --seed 3"
    assert f"$ {first}\n" in text
    assert any(set(second.split()) == set(line.removeprefix("$ ").split()) for line in text.splitlines())
    assert (provenance["epochs"], provenance["seed"]) == ("3 + 2", "0, 3")
    assert provenance["commit"] == "fedcba98, 0123456789abcdef"
    assert recipe_named(str(card.with_name("card_recipe.yaml"))).name == "first"
    assert recipe_named(str(card.with_name("card_recipe_2.yaml"))).name == "small"


def test_a_start_that_is_not_named_is_asked_for(make, run, run_folder, tmp_path, capsys):
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**document, "transfer": {"taken": 99}}))
    assert make()[0] == 2
    assert "started from other weights; name with --before what came before" in capsys.readouterr().err
    (run / "run.json").write_text(json.dumps(document))
    assert make("--before", str(run_folder(tmp_path / "start")))[0] == 2
    assert "started from random weights" in capsys.readouterr().err


def test_speeds_are_measured_with_what_is_installed(make, maker, monkeypatch):
    monkeypatch.setattr(maker, "SPEED_ROUNDS", 3)
    monkeypatch.setattr(maker, "ENGINES", {"ONNX Runtime": ("onnxruntime", False), "torch": ("torch", False)})
    code, _, card = make("--speed")
    assert code == 0
    rows = [line for line in card.read_text().splitlines() if line.startswith(("| ONNX Runtime ", "| torch "))]
    assert len(rows) == 2
    assert all(line.count(" ms |") == 3 for line in rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "yolov3-tiny"}, "the default model is a yolov4-tiny, this checkpoint a yolov3-tiny"),
        ({"num_classes": 3}, "COCO's 80 classes"),
    ],
)
def test_another_network_and_other_classes_are_refused(make, data, run, capsys, change, words):
    save_checkpoint(run / "best.safetensors", checkpoint(data, **change))
    code, out, card = make()
    assert (code, out.exists(), card.exists()) == (2, False, False)
    assert words in capsys.readouterr().err


def test_values_beyond_float16_and_other_data_are_refused(make, data, run, capsys):
    whole = checkpoint(data)
    name = next(name for name, values in whole.weights.items() if values.ndim > 1)
    save_checkpoint(
        run / "best.safetensors", replace(whole, weights={**whole.weights, name: whole.weights[name] + 1e5})
    )
    assert make()[0] == 2
    assert f"{name}: has values that float16 cannot hold" in capsys.readouterr().err
    other = {**whole.provenance, "data_fingerprint": "another"}
    save_checkpoint(run / "best.safetensors", replace(whole, provenance=other))
    assert make()[0] == 2
    assert "not trained on" in capsys.readouterr().err


def test_a_run_that_was_never_evaluated_is_refused(make, run, capsys):
    (run / "epochs.csv").write_text("epoch,seconds\n1,3\n")
    assert make()[0] == 2
    assert "0 evaluations" in capsys.readouterr().err


def test_a_checkpoint_without_its_run_is_refused(make, run, capsys):
    (run / "run.json").unlink()
    assert make()[0] == 2
    assert "not the folder of a training" in capsys.readouterr().err
