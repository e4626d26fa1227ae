"""What goes wrong in a training gives one clear sentence, and what was saved stays."""

from __future__ import annotations

import resource
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from scaledyolo.cli import main
from scaledyolo.train.guard import NonFiniteError
from scaledyolo.train.machine import resolve_precision
from scaledyolo.train.state import load_state
from scaledyolo.train.training import MOST_ROLLBACKS, Training

Say = Callable[[list[str]], str]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def sentence(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command that must fail; gives its last line, which must be the only complaint."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        assert main(arguments) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        complaints = [line for line in lines if line.startswith("scaledyolo: ")]
        assert len(complaints) == 1
        assert lines[-1] == complaints[0]
        return complaints[0]

    return run


@pytest.fixture
def trained(world: Any) -> Path:
    """The folder of a run of one epoch, of two."""
    assert main(world.arguments(world.short_recipe(1))) == 0
    return world.folder / "runs" / "train"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_wrong_paths(world: Any, sentence: Say, tmp_path: Path) -> None:
    arguments = world.arguments(world.short_recipe(1))
    assert "no such file or folder. Did you mean 'data.yaml'?" in sentence(
        world.arguments(world.short_recipe(1), data=world.shapes.with_name("dta.yaml"))
    )
    assert "unknown recipe 'cutsom'; Did you mean 'custom'?" in sentence([*arguments, "--recipe", "cutsom"])
    assert "no network named 'yolov4-tinny'" in sentence([*arguments, "--model", "yolov4-tinny"])
    assert "no such file" in sentence([*arguments, "--weights", str(tmp_path / "none.safetensors")])
    assert "it has no run.json" in sentence(["train", "--resume", str(tmp_path)])
    assert "nothing to learn from" in sentence(["train"])
    assert not (world.folder / "runs").exists(), "a run that cannot begin leaves no folder"


def test_unknown_recipe_key_and_bad_values(world: Any, sentence: Say) -> None:
    arguments = world.arguments(world.short_recipe(1))
    assert "unknown key 'epoch' in schedule. Did you mean 'epochs'?" in sentence(
        [*arguments, "--set", "schedule.epoch=3"]
    )
    assert "devices must be at least 1" in sentence([*arguments, "--devices", "0"])
    assert "'many' is no amount of memory" in sentence([*arguments, "--memory", "many"])
    assert "one image, but there are" in sentence([*arguments, "--memory", "1M"])
    assert "float16 is not for training on a CPU" in sentence([*arguments, "--device", "cpu", "--precision", "16"])
    assert "no log service 'wandbb'. Did you mean 'wandb'?" in sentence([*arguments, "--log", "wandbb"])


def test_empty_split(world: Any, sentence: Say) -> None:
    data = world.write_shapes(world.folder / "empty", 2)
    for path in (data.parent / "images" / "train").iterdir():
        path.unlink()
    assert "image" in sentence(world.arguments(world.short_recipe(1), data=data))


def test_images_without_a_single_box_are_refused_with_the_reason(world: Any, sentence: Say) -> None:
    """Rows in pixels are left out one by one; what remains could teach nothing, and says why."""
    data = world.write_shapes(world.folder / "pixels", 2)
    for label in (data.parent / "labels" / "train").iterdir():
        label.write_text("0 60 70 20 20\n")
    said = sentence(world.arguments(world.short_recipe(1), data=data))
    assert "2 images and not a single box to learn from; 2 items were left out" in said
    assert "are these pixels?" in said


def test_a_training_tells_what_it_does_and_what_to_do_next(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken labels and images that are learnt from and chosen by are told before, the next commands after."""
    data = world.write_shapes(world.folder / "my set", 4)
    (data.parent / "labels" / "train" / "001.txt").write_text("0 .5 .5 .2 .2\n3 .5 .5 .2 .2\n")
    assert main(world.arguments(world.short_recipe(1), data=data)) == 0
    out, err = capsys.readouterr()
    boxes = sum(len(path.read_text().splitlines()) for path in (data.parent / "labels" / "train").iterdir()) - 1
    assert f"4 images with {boxes} boxes to learn from" in err
    assert "classes: square, disc, triangle" in err
    assert "warning: broken items in the images to learn from: 1, the first" in err
    assert "do the ids count from 1?" in err
    assert "warning: 4 of the 4 images to choose by are also learnt from" in err
    assert f"scaledyolo eval {world.folder / 'runs' / 'train' / 'best.safetensors'} --data '{data}'" in out
    assert "--split" not in out
    assert main(["train", "--resume", str(world.folder / "runs" / "train")]) == 0
    assert "its only epoch is done already" in capsys.readouterr().err


def test_the_command_that_measures_names_the_images_that_were_kept_apart(
    world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `train` proposes at its end can be run as it stands."""
    data = world.write_shapes(world.folder / "alone", 8)
    data.write_text(data.read_text().replace("val: images/train", "other: images/train"))
    assert main(world.arguments(world.short_recipe(1), "--val-split", "0.5", data=data)) == 0
    proposed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("measure it:"))
    words = shlex.split(proposed.removeprefix("measure it:"))
    assert words[-2:] == ["--split", "train[50%:]"]
    assert main([*words[1:], "--engine", "onnxruntime", "--out", str(world.folder / "evals")]) == 0


def test_nothing_found_in_any_epoch_is_said(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no validation image has a box, nothing can be found in any epoch."""
    data = world.write_shapes(world.folder / "set", 2, 1)
    next((data.parent / "labels" / "val").iterdir()).write_text("")
    assert main(world.arguments(world.short_recipe(1), data=data)) == 0
    out, err = capsys.readouterr()
    assert "warning: the images to choose by have no boxes" in err
    assert "warning: no object of the images to choose by was found in any epoch" in out


def test_an_interrupted_training_tells_how_to_go_on(
    world: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaledyolo.train import loop

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "finish_epoch", interrupted)
    assert main(world.arguments(world.short_recipe(1))) == 130
    folder = world.folder / "runs" / "train"
    assert f"interrupted; `scaledyolo train --resume {folder}` goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["train", "--resume", str(folder)]) == 0


def test_label_out_of_range(world: Any, sentence: Say) -> None:
    data = world.write_shapes(world.folder / "set", 3)
    label = data.parent / "labels" / "train" / "001.txt"
    label.write_text("0 .5 .5 .2 .2\n7 .5 .5 .2 .2\n")
    said = sentence(world.arguments(world.short_recipe(1), "--bad", "fail", data=data))
    assert "001.txt:2" in said
    assert "7" in said


def test_class_counts_that_do_not_match(world: Any, sentence: Say, capsys: pytest.CaptureFixture[str]) -> None:
    """The network follows the data; a data set whose parts disagree is refused."""
    from scaledyolo.data.formats import open_dataset
    from scaledyolo.errors import DataError
    from scaledyolo.train.prepare import check_classes

    with pytest.raises(DataError, match="has 3 classes, the network 5"):
        check_classes(world.narrow_spec(5), open_dataset(world.shapes, "train"))
    spec = world.folder / "five.yaml"
    spec.write_text(yaml.safe_dump(world.narrow_spec(5).to_dict()))
    assert main([*world.arguments(world.short_recipe(1)), "--model", str(spec)]) == 0
    assert "last.safetensors" in capsys.readouterr().out


def test_a_checkpoint_of_another_network_is_refused(world: Any, trained: Path, sentence: Say) -> None:
    weights = trained / "last.safetensors"
    options = ("--model", "yolov3", "--size", 64, "--weights", weights)
    said = sentence(world.arguments(world.short_recipe(1), *options))
    assert "only 0.0 % of the values of yolov3 are found in narrow" in said


def test_a_loss_that_is_no_number_names_where_it_began(
    world: Any, sentence: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch has a pixel that is no number; the first epoch is done and kept."""
    poison(monkeypatch, [(1, 0)])
    said = sentence(world.arguments(world.short_recipe(3)))
    folder = world.folder / "runs" / "train"
    assert "the loss is nan; it began in the images" in said
    kept = load_file(folder / "nonfinite-batch.safetensors")
    assert kept["images"].shape == (4, 3, 128, 128)
    assert not bool(torch.isfinite(kept["images"]).all())
    assert load_state(folder / "state.safetensors").progress.epoch == 1
    monkeypatch.undo()
    assert main(["train", "--resume", str(folder)]) == 0
    assert load_state(folder / "state.safetensors").progress.epoch == 3


def poison(monkeypatch: pytest.MonkeyPatch, batches: list[tuple[int, int]]) -> None:
    """Put a NaN into the images of these (epoch, batch)."""
    original = Training.to_device

    def poisoned(self: Training, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = original(self, batch)
        if (self.progress.epoch, self.progress.batch) in batches:
            images[0, 0, 0, 0] = float("nan")
        return images, targets

    monkeypatch.setattr(Training, "to_device", poisoned)


def test_a_resume_takes_no_other_options(tmp_path: Path, sentence: Say) -> None:
    said = sentence(["train", "--resume", str(tmp_path), "--epochs", "9", "--set", "batch=2", "--freeze-norm"])
    assert "so --set and --epochs and --freeze-norm cannot change it" in said
    assert f"--weights {tmp_path / 'last.safetensors'}" in said


def test_an_epoch_that_breaks_off_leaves_no_thread_and_no_bar(
    world: Any, monkeypatch: pytest.MonkeyPatch, sentence: Say
) -> None:
    import scaledyolo.train.loop as loop

    original, left = loop.train_epoch, []

    def watched(t: Training) -> None:
        try:
            original(t)
        except NonFiniteError:  # held here with its traceback, which keeps everything alive that was not closed
            left.append([thread.name for thread in threading.enumerate() if "scaledyolo-data" in thread.name])
            left.append(t.journal._bar)
            raise

    monkeypatch.setattr(loop, "train_epoch", watched)
    poison(monkeypatch, [(0, 0)])
    sentence(world.arguments(world.short_recipe(1)))
    assert left == [[], None]


def test_weights_and_layers_are_named_too(world: Any, monkeypatch: pytest.MonkeyPatch, sentence: Say) -> None:
    recipe = world.short_recipe(30).replace("optimiser.learning_rate=1e12", "schedule.warmup_min_steps=0")
    said = sentence(world.arguments(recipe))
    assert "it began in the " in said
    assert any(words in said for words in ("output of '", "weights '", "gradient of '"))

    import scaledyolo.train.loop as loop

    original = loop.gradient_norm

    def broken(parameters: list[torch.Tensor]) -> float:
        parameters[4].grad[...] = float("inf")  # type: ignore[index]
        return original(parameters)

    monkeypatch.setattr(loop, "gradient_norm", broken)
    said = sentence(world.arguments(world.short_recipe(1)))
    assert "the gradient is not finite; it began in the gradient of 'backbone.stage1" in said


def test_going_back_leaves_the_batch_out_and_goes_on(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, [(0, 0), (1, 1)])
    assert main(world.arguments(world.short_recipe(3), "--on-nonfinite", "rollback")) == 0
    state = load_state(world.folder / "runs" / "train" / "state.safetensors")
    assert (state.progress.epoch, state.progress.step) == (3, 6)
    assert all(bool(torch.isfinite(value).all()) for value in state.tensors.values() if value.is_floating_point())
    assert capsys.readouterr().err.count("Going back") == 2


def test_going_back_does_not_loop_for_ever(world: Any, monkeypatch: pytest.MonkeyPatch, sentence: Say) -> None:
    poison(monkeypatch, [(0, number) for number in range(99)])
    data = world.write_shapes(world.folder / "set", 26)
    recipe = world.short_recipe(1, batch=2)
    said = sentence(world.arguments(recipe, "--on-nonfinite", "rollback", data=data))
    assert f"going back {MOST_ROLLBACKS} times in one epoch did not help" in said


def test_a_disk_that_is_full_from_the_start(world: Any, trained: Path) -> None:
    """No file may grow beyond 200 kB, which the state does: the run ends at once, and leaves nothing half-written."""
    limit = 200_000
    assert (trained / "state.safetensors").stat().st_size > limit
    lines = (
        "import resource, sys",
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
        "from scaledyolo.cli import main",
        "sys.exit(main(sys.argv[1:]))",
    )
    arguments = world.arguments(world.short_recipe(1), out="full")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *arguments],
        check=False, capture_output=True, text=True, env=world.environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    complaints = [line for line in done.stderr.splitlines() if line.startswith("scaledyolo: ")]
    assert len(complaints) == 1
    assert "cannot be written" in complaints[0]
    assert "Traceback" not in done.stderr
    left = {path.name for path in (world.folder / "full" / "train").iterdir() if path.is_file()}
    assert left == {"run.json"}


def test_a_disk_that_fills_up_while_training_keeps_what_was_saved(
    world: Any, monkeypatch: pytest.MonkeyPatch, sentence: Say
) -> None:
    """The third save of the state fails; the run can be taken up from the second."""
    import scaledyolo.train.training as training

    original, saves = training.save_state, [0]

    def limited(path: Path, **parts: Any) -> None:
        saves[0] += 1
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if saves[0] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            original(path, **parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(training, "save_state", limited)
    assert "cannot be written" in (said := sentence(world.arguments(world.short_recipe(4))))
    assert "nothing was changed" in said
    folder = world.folder / "runs" / "train"
    assert load_state(folder / "state.safetensors").progress.epoch == 1
    assert not list(folder.glob(".*.part"))
    assert main(["train", "--resume", str(folder)]) == 0
    assert load_state(folder / "state.safetensors").progress.epoch == 4


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.safetensors", lambda data: data[: len(data) // 2]),
        ("state.safetensors", lambda data: b"\x00" * len(data)),
        ("state.safetensors", lambda data: data.replace(b'\\"epoch\\"', b'\\"epoxh\\"', 1)),
        ("state.safetensors", lambda data: b""),
        ("run.json", lambda data: data[:100]),
        ("run.json", lambda data: b"[]"),
        ("run.json", lambda data: data.replace(b'"epochs": 1', b'"epochs": "one"')),
    ],
)
def test_damaged_files_are_told_and_left_alone(
    trained: Path, sentence: Say, name: str, damage: Callable[[bytes], bytes]
) -> None:
    path = trained / name
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    before = files(trained)
    said = sentence(["train", "--resume", str(trained)])
    assert name in said
    assert files(trained) == before


def test_changed_data_is_refused(world: Any, sentence: Say) -> None:
    data = world.write_shapes(world.folder / "set", 4)
    assert main(world.arguments(world.short_recipe(1), data=data)) == 0
    folder = world.folder / "runs" / "train"
    before = files(folder)
    (data.parent / "labels" / "train" / "000.txt").write_text("1 .5 .5 .25 .25\n")
    said = sentence(["train", "--resume", str(folder)])
    assert "the train data changed since this run began" in said
    assert f"--weights {folder / 'last.safetensors'}" in said
    assert files(folder) == before


def test_moved_data_is_found_where_it_lies_now(world: Any, sentence: Say) -> None:
    data = world.write_shapes(world.folder / "set", 4)
    assert main(world.arguments(world.short_recipe(1), data=data)) == 0
    folder = world.folder / "runs" / "train"
    moved = Path(shutil.move(data.parent, world.folder / "elsewhere")) / "data.yaml"
    moved.write_text(moved.read_text().replace(str(data.parent), str(moved.parent)))
    assert "say with --data where it lies now" in sentence(["train", "--resume", str(folder)])
    assert main(["train", "--resume", str(folder), "--data", str(moved)]) == 0


def test_another_recipe_or_model_is_no_resume(world: Any, trained: Path, sentence: Say) -> None:
    path = trained / "run.json"
    text = path.read_text()
    path.write_text(text.replace('"epochs": 1,', '"epochs": 9,'))
    assert "the recipe differs from that of the run" in sentence(["train", "--resume", str(trained)])
    path.write_text(text.replace('"channels": 16', '"channels": 24'))
    said = sentence(["train", "--resume", str(trained)])
    assert "the model differs" in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags : fpu avx512_bf16 sse", True), ("flags : amx_bf16", True), ("flags : avx2", False), ("", False)],
)
def test_bf16_is_chosen_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool) -> None:
    from scaledyolo.train.machine import cpu_has_bf16

    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor: 0\n{flags}\n")
    assert cpu_has_bf16() is expected
    assert resolve_precision("auto", "cpu") == ("bf16" if expected else "32")
    assert resolve_precision("32", "cpu") == "32"
    assert resolve_precision("auto", "mps") == "32"
