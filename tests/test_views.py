"""Test-time augmentation and ensembles, with the colour model: where every box must be is known in advance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from scaledyolo import Detector
from scaledyolo.artefact import EmbeddedNms, ModelFacts
from scaledyolo.checkpoint import save_checkpoint
from scaledyolo.cli import main
from scaledyolo.data.tta import TtaPass, tta_passes
from scaledyolo.errors import DataError, SpecError, UsageError
from scaledyolo.postprocess import Candidates
from scaledyolo.runnable import Runnable
from scaledyolo.views import View, describe_views, inputs_of, relative_cost, views_of

CELLS = ((1, 2, 0), (5, 2, 1), (3, 6, 2))  # column, row, class
ENGINE = {"engine": "onnxruntime", "threads": 1}
# The colour model's input is 64 x 64 and its stride 8: 0.83 x 64 = 53.1 fills 56, 0.67 x 64 = 42.9 fills 48.
COLOUR_COST = (64**2 + 56**2 + 48**2) / 64**2


@pytest.fixture(scope="module")
def plain(colours) -> Detector:
    return Detector(colours.checkpoint, **ENGINE)


@pytest.fixture
def image(paint) -> np.ndarray:
    return paint(64, 64, *CELLS)


def look(view: View, canvas: np.ndarray) -> list[tuple[int, list[float]]]:
    """(class, box) of each candidate of one view of one canvas."""
    (batch,) = inputs_of([view], [canvas])
    (found,) = view.decode(view.run(batch), 0.25)
    return sorted(zip(found.class_ids.tolist(), np.round(found.boxes_xyxy, 4).tolist(), strict=True))


def answer(detector: Detector, image: np.ndarray) -> Candidates:
    return detector.candidates([image])[0]


def assert_same(found: Candidates, expected: Candidates, rtol: float = 0) -> None:
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=rtol)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=rtol)


# Geometry -----------------------------------------------------------------------------------------------------------


def test_a_mirrored_view_finds_every_cell_where_it_is(plain, image):
    boxes = sorted((k, [8.0 * c, 8.0 * r, 8.0 * c + 8, 8.0 * r + 8]) for c, r, k in CELLS)
    for flip in (False, True):
        assert look(replace(plain.views[0], augmentation=TtaPass(64, 64, 1.0, flip, 8)), image) == boxes


def test_a_mirrored_shrunk_and_padded_view_finds_a_square_where_it_is(plain):
    # Mirrored in 72 columns, 24 to 40 becomes 32 to 48; at half the size that is one cell, of a content of 36 of 40.
    canvas = np.zeros((48, 72, 3), np.uint8)
    canvas[16:32, 24:40, 1] = 255
    half = TtaPass(48, 72, 0.5, True, 8)
    assert (half.content_size, half.padded_size) == ((24, 36), (24, 40))
    assert look(replace(plain.views[0], augmentation=half), canvas) == [(1, [24.0, 16.0, 40.0, 32.0])]


@pytest.mark.parametrize(
    ("stride", "sizes"),
    [(32, (640, 544, 448)), (128, (896, 768, 640)), (128, (1280, 1152, 896)), (128, (1536, 1280, 1152))],
)
def test_the_cost_is_that_of_the_printed_sizes(stride, sizes):
    views = [View(lambda batch: [], (), one) for one in tta_passes(sizes[0], sizes[0], stride)]
    assert relative_cost(views) == pytest.approx(sum(side**2 for side in sizes) / sizes[0] ** 2)
    told = describe_views(views, "nms")
    assert f"3 views of each image ({sizes[0]}x{sizes[0]}, {sizes[1]}x{sizes[1]} mirrored, {sizes[2]}x" in told


# The detector -------------------------------------------------------------------------------------------------------


def test_identical_views_reduce_to_the_single_set(colours, plain, image):
    """Training spec 9.9, with the network in between."""
    repeated = Detector(colours.checkpoint, **ENGINE)
    repeated.views = plain.views * 3
    assert_same(answer(repeated, image), answer(plain, image))
    mirrored = replace(plain.views[0], augmentation=TtaPass(64, 64, 1.0, True, 8))
    repeated.views = (*plain.views, mirrored)
    assert_same(answer(repeated, image), answer(plain, image), rtol=1e-6)


def test_augmentation_shows_three_sizes_and_loses_nothing(colours, plain, image, paint):
    detector = Detector(colours.checkpoint, tta=True, **ENGINE)
    assert [str(view.augmentation) for view in detector.views] == ["64x64", "56x56 mirrored", "48x48"]
    assert relative_cost(detector.views) == COLOUR_COST
    found = answer(detector, image)
    boxes = {(int(k), *np.round(box, 3)) for k, box in zip(found.class_ids, found.boxes_xyxy, strict=True)}
    assert boxes >= {(k, 8.0 * c, 8.0 * r, 8.0 * c + 8, 8.0 * r + 8) for c, r, k in CELLS}
    # What is a whole image at one size is too large for a cell; colours and images are not confused in a batch.
    green = paint(64, 64, (0, 0, 1), cell=64)
    of_image, of_green, of_black = detector.candidates([image, green, np.zeros_like(image)])
    assert_same(of_image, found, rtol=1e-6)
    assert set(of_green.class_ids.tolist()) == {1}
    assert len(of_black) == 0
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= 64).all()
    assert set(Detector(colours.checkpoint, tta=True, classes=["blue"], **ENGINE)(image).class_id) == {2}


@pytest.mark.parametrize("merge", ["nms", "wbf"])
def test_an_ensemble_of_a_model_with_itself_is_the_model(colours, plain, image, merge):
    ensemble = Detector(colours.path, ensemble=[colours.checkpoint], merge=merge, **ENGINE)
    assert len(ensemble.views) == 2
    assert_same(answer(ensemble, image), answer(plain, image), rtol=1e-6)


def test_an_ensemble_finds_what_either_finds(colours, plain, image):
    """A member that is blind to red, and one that is blind to green."""

    def blind_to(colour: int):
        weights = dict(colours.checkpoint.weights)
        weights["cells.bias"] = weights["cells.bias"].copy()
        weights["cells.bias"][5 + colour] = -50
        return replace(colours.checkpoint, weights=weights)

    members = blind_to(0), blind_to(1)
    assert [set(answer(Detector(one, **ENGINE), image).class_ids.tolist()) for one in members] == [{1, 2}, {0, 2}]
    both = answer(Detector(members[0], ensemble=members[1:], **ENGINE), image)
    assert sorted(both.class_ids.tolist()) == [0, 1, 2]
    # Fused, what one of two saw has half the score: at most one half.
    fused = answer(Detector(members[0], ensemble=members[1:], merge="wbf", **ENGINE), image)
    scores = dict(zip(fused.class_ids.tolist(), fused.scores.tolist(), strict=True))
    single = float(answer(plain, image).scores[0])
    assert scores == pytest.approx({0: single / 2, 1: single / 2, 2: single}, rel=1e-5)


def test_networks_share_the_input_that_they_are_both_shown(plain, image):
    first, second = inputs_of(plain.views * 2, [image])
    assert first is second


# Refusals -----------------------------------------------------------------------------------------------------------


def test_unequal_classes_are_refused_by_name(colours):
    other = replace(colours.checkpoint, class_names=("red", "green", "cyan"))
    with pytest.raises(DataError, match=r"class 2 is 'blue' in model 1 \(colours\), 'cyan' in model 2 \(colours\)"):
        Detector(colours.checkpoint, ensemble=[other], **ENGINE)
    facts = ModelFacts.of(colours.checkpoint)
    fewer = replace(facts, class_names=("red", "green"))
    networks = [Runnable(SimpleNamespace(), one) for one in (facts, facts, fewer)]
    with pytest.raises(DataError, match=r"model 1 \(colours\) knows 3 classes, model 3 \(colours\) 2"):
        views_of(networks, 64, 64)


def test_artefacts_that_cannot_take_part_are_refused_with_the_reason(colours, tmp_path):
    from scaledyolo.export import export

    fixed = export(colours.checkpoint, tmp_path / "fixed.onnx", verified=False).path
    with pytest.raises(UsageError, match="exported for 64x64 only.*other sizes too.*--dynamic"):
        Detector(fixed, tta=True, **ENGINE)
    assert len(Detector(fixed, ensemble=[colours.path], **ENGINE).views) == 2  # of the same size: nothing against it
    with pytest.raises(SpecError, match="exported for 64x64 only"):
        Detector(colours.path, ensemble=[fixed], size=128, **ENGINE)
    path = tmp_path / "whole.onnx"
    whole = export(colours.checkpoint, path, nms=EmbeddedNms(), dynamic=True, verified=False).path
    for options in ({"tta": True}, {"ensemble": [colours.path]}):
        with pytest.raises(UsageError, match="suppression is part of this exported network"):
            Detector(whole, **options, **ENGINE)


def test_an_ensemble_that_is_no_list_is_refused(colours):
    for one in (colours.path, str(colours.path)):
        with pytest.raises(UsageError, match="an ensemble is a list of models"):
            Detector(colours.checkpoint, ensemble=one, **ENGINE)


def test_merging_without_views_is_refused(colours):
    with pytest.raises(UsageError, match="needs several views"):
        Detector(colours.checkpoint, merge="wbf", **ENGINE)


# The command line ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(colours, paint, tmp_path, monkeypatch) -> Path:
    """A working folder with the colour model, one picture and a data set of three."""
    (tmp_path / "model.safetensors").write_bytes(colours.path.read_bytes())
    Image.fromarray(paint(64, 64, *CELLS)).save(tmp_path / "a.png")
    for part in ("images/val", "labels/val"):
        (tmp_path / "data" / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(3):
        cells = {(int(c), int(r)): int(k) for c, r, k in rng.integers(0, (8, 8, 3), (5, 3))}
        picture = paint(64, 64, *((c, r, k) for (c, r), k in cells.items()))
        Image.fromarray(picture).save(tmp_path / "data" / "images" / "val" / f"{index}.png")
        lines = [f"{k} {(c + 0.5) / 8} {(r + 0.5) / 8} 0.125 0.125" for (c, r), k in cells.items()]
        (tmp_path / "data" / "labels" / "val" / f"{index}.txt").write_text("\n".join(lines))
    names = {"path": ".", "val": "images/val", "names": list(colours.checkpoint.class_names)}
    (tmp_path / "data" / "data.yaml").write_text(yaml.safe_dump(names))
    monkeypatch.chdir(tmp_path)
    return tmp_path


EVAL = ("eval", "model.safetensors", "--data", "data", "--engine", "onnxruntime")


@pytest.mark.parametrize("merge", ["nms", "wbf"])
def test_eval_of_an_ensemble_that_is_always_right_gives_one(folder, capsys, merge):
    assert main([*EVAL, "--ensemble", "model.safetensors", "--merge", merge, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["AP"] == pytest.approx(1.0, abs=1e-6)
    assert figures["relative_cost"] == 2.0


def test_eval_with_augmentation_says_what_it_costs(folder, capsys):
    assert main([*EVAL, "--tta", "--compare", "model.safetensors"]) == 0
    told = capsys.readouterr().out
    assert f"3 views of each image (64x64, 56x56 mirrored, 48x48), {COLOUR_COST:.2f} times the pixels of one" in told
    assert "AP +0.0000" in told  # against itself, under the same rules
    assert "56x56 mirrored" in (folder / "runs" / "eval" / "report.html").read_text(encoding="utf-8")


def test_detect_takes_the_same_options(folder, capsys):
    command = ["detect", "a.png", "--model", "model.safetensors", "--engine", "onnxruntime", "--save", "none"]
    assert main([*command, "--tta", "--ensemble", "model.safetensors"]) == 0
    told = capsys.readouterr().out
    assert "6 views of each image" in told
    assert f"{2 * COLOUR_COST:.2f} times the pixels of one, merged by nms" in told
    assert main(command) == 0
    assert "views of each image" not in capsys.readouterr().out


def test_the_command_line_refuses_in_one_sentence(folder, colours, capsys):
    save_checkpoint("other.safetensors", replace(colours.checkpoint, class_names=("red", "green", "cyan")))
    assert main([*EVAL, "--ensemble", "other.safetensors"]) == 2
    assert "class 2 is 'blue' in model 1" in capsys.readouterr().err
    assert main([*EVAL, "--merge", "wbf"]) == 2
    assert "needs several views" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["eval", "detect"])
def test_help_explains_the_options(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    told = capsys.readouterr().out
    for option in ("--tta", "--ensemble", "--merge"):
        assert option in told
