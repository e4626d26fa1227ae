"""What a training learns from: shares, lists, several sources, the user's own augmentation, remembered canvases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.cli import main
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.selection import open_pair
from scaledyolo.train.manifest import RUN_FILE, read_run
from scaledyolo.train.state import load_state

MIRROR = """
from dataclasses import replace

def mirror(sample, rng):
    boxes = sample.boxes_xyxy.copy()
    boxes[:, (0, 2)] = sample.width - boxes[:, (2, 0)]
    return replace(sample, image=sample.image[:, ::-1], boxes_xyxy=boxes)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RUN_FILE).read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_state(folder / "state.safetensors")
    return {name: value for name, value in state.tensors.items() if name.startswith("weights/")}


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_share_of_two_sources_is_kept_apart_and_resumed(world: Any) -> None:
    data = [world.write_shapes(world.folder / name, 8, seed=seed) for seed, name in enumerate(("a", "b"))]
    extra = yaml.safe_load(data[1].read_text())
    data[1].write_text(yaml.safe_dump({**extra, "names": ["disc", "star", "triangle"]}))
    arguments = world.arguments(world.short_recipe(1), "--val-split", "0.3", data=data[0])
    arguments.insert(arguments.index(str(data[0])) + 1, str(data[1]))
    assert main(arguments) == 0
    folder = world.folder / "runs" / "train"
    train, val = open_pair(data, "train", "0.3")
    written = manifest(folder)
    assert written["images"] == {"train": len(train), "val": len(val)}
    assert len(train) + len(val) == 16
    assert (written["data"]["split"], written["data"]["val_split"]) == ("train[:70%]", "train[70%:]")
    assert load_checkpoint(folder / "last.safetensors").class_names == ("square", "disc", "triangle", "star")
    assert main(["train", "--resume", str(folder)]) == 0
    moved = world.write_shapes(world.folder / "moved", 8, seed=5)
    assert main(["train", "--resume", str(folder), "--data", str(moved)]) == 2


def test_lists_are_found_again_from_another_folder(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    Path("kept.txt").write_text("000\n001\n")
    arguments = world.arguments(world.short_recipe(1), "--val-split", "kept.txt")
    assert main(arguments) == 0
    folder = world.folder / "runs" / "train"
    assert manifest(folder)["images"] == {"train": 6, "val": 2}
    monkeypatch.chdir("/")
    assert main(["train", "--resume", str(folder)]) == 0


def test_runs_begun_with_one_path_are_still_read(world: Any) -> None:
    assert main(world.arguments(world.short_recipe(1))) == 0
    folder = world.folder / "runs" / "train"
    document = manifest(folder)
    document["data"]["path"] = document["data"].pop("paths")[0]
    del document["settings"]["transform"]
    (folder / RUN_FILE).write_text(json.dumps(document))
    run = read_run(folder)
    assert run.data is not None
    assert run.data.paths == (str(world.shapes),)
    assert main(["train", "--resume", str(folder)]) == 0


def test_the_users_transform_is_applied_and_part_of_the_run(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mirroring twice is no change, so the weights say whether it ran, and ran on image and boxes."""
    monkeypatch.chdir(world.folder)
    name = f"mine_{world.folder.name}"
    code = Path(f"{name}.py")
    code.write_text(MIRROR + "\ndef twice(sample, rng):\n    return mirror(mirror(sample, rng), rng)\n")
    recipe = world.short_recipe(1)
    for out, option in (("plain", []), ("once", ["mirror"]), ("twice", ["twice"])):
        chosen = [part for function in option for part in ("--transform", f"{name}:{function}")]
        assert main(world.arguments(recipe, *chosen, out=out)) == 0
    plain, once, twice = (world.folder / out / "train" for out in ("plain", "once", "twice"))
    assert same(plain, twice)
    assert not same(plain, once)
    assert main(["train", "--resume", str(once)]) == 0
    code.write_text(code.read_text() + "\n# changed\n")
    assert main(["train", "--resume", str(once)]) == 2
    assert "the code of the transform differs from that of the run" in capsys.readouterr().err
    assert main(world.arguments(recipe, "--transform", f"{name}:miror", out="none")) == 2
    assert "has no 'miror'. Did you mean 'mirror'?" in capsys.readouterr().err
    assert not (world.folder / "none").exists()


def test_images_to_choose_by_are_decoded_once_and_change_nothing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = world.write_shapes(world.folder / "set", 4, val_count=3)
    seen: list[str] = []
    load = Dataset.load_image

    def counted(self: Dataset, index: int) -> Any:
        seen.append(Path(self.path(index)).parent.name)
        return load(self, index)

    monkeypatch.setattr(Dataset, "load_image", counted)
    figures = {}
    for cache, decoded in (("ram", 3), ("none", 9)):
        seen.clear()
        assert main(world.arguments(world.short_recipe(3), "--cache", cache, data=data, out=cache)) == 0
        assert seen.count("val") == decoded
        lines = (world.folder / cache / "train" / "epochs.csv").read_text().splitlines()
        figures[cache] = [line.split(",")[7:9] for line in lines]
    assert figures["ram"] == figures["none"]
    assert figures["ram"][0] == ["ap", "ap50"]


def test_stopping_early_waits_for_an_evaluation(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is learnt, so the first evaluation stays the best; the second, four epochs on, ends the training."""
    recipe = world.short_recipe(20).replace("optimiser.learning_rate=1e-12", "schedule.warmup_bias_rate=0")
    assert main(world.arguments(recipe, "--patience", 2, "--evaluate-every", 4, "--freeze-norm")) == 0
    assert "no better for 2 epochs; stopping early" in capsys.readouterr().err
    assert load_state(world.folder / "runs" / "train" / "state.safetensors").progress.epoch == 8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--val-split", "1.5"], "a share of the images lies between 0 and 1"),
        (["--split", "0.5"], "--split 0.5 needs a share as --val-split too"),
        (["--val-split", "none.txt"], "none.txt: No such file"),
        (["--transform", "mine"], "write it as module:object"),
        (["--transform", "no_such_module:pipeline"], "there is no module 'no_such_module' here"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_folder(
    world: Any, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(world.arguments(world.short_recipe(1), *options)) == 2
    assert sentence in capsys.readouterr().err
    assert not (world.folder / "runs").exists()
