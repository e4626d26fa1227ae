"""The user's own augmentation, by name; Albumentations for real where it is installed."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaledyolo.data.plugins import from_albumentations, from_torchvision, load_transform, transform_fingerprint
from scaledyolo.data.sample import Sample
from scaledyolo.errors import MissingPackageError, UsageError

CODE = """
import numpy as np
from dataclasses import replace

def darken(sample, rng):
    return replace(sample, image=sample.image // np.uint8(rng.integers(2, 4)))

def make():
    return darken

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module whose name no other test uses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"mine_{tmp_path.name}.py").write_text(CODE)
    return tmp_path


def sample(boxes: int = 3) -> Sample:
    rng = np.random.default_rng(3)
    corners = np.array([[4, 6, 30, 40], [10.5, 0, 64, 33.25], [0, 0, 20, 20]], np.float32)[:boxes]
    return Sample(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), corners, np.array([0, 2, 1])[:boxes])


def test_a_function_of_the_current_folder(here: Path) -> None:
    module = f"mine_{here.name}"
    given = sample()
    for name in ("darken", "make"):
        changed = load_transform(f"{module}:{name}")(given, np.random.default_rng(1))
        np.testing.assert_array_equal(changed.image, given.image // np.random.default_rng(1).integers(2, 4))
    assert transform_fingerprint(f"{module}:darken") == hashlib.sha256(CODE.encode()).hexdigest()


def test_names_that_are_no_transform(here: Path) -> None:
    module = f"mine_{here.name}"
    (here / f"broken_{here.name}.py").write_text("import numpy as np\nnp.zeros(-1)\n")
    (here / f"needy_{here.name}.py").write_text("import no_such_package\n")
    for name, sentence in (
        ("darken", "write it as module:object"),
        (f"{module}:", "write it as module:object"),
        (f"{module}:darkn", "has no 'darkn'. Did you mean 'darken'?"),
        (f"{module}:number", "is a int; needed is"),
        (f"mine_{here.name}x:darken", f"there is no module 'mine_{here.name}x' here. Did you mean"),
        (f"broken_{here.name}:darken", "importing it failed with ValueError: negative dimensions"),
    ):
        with pytest.raises(UsageError, match=sentence.replace("?", r"\?")):
            load_transform(name)
    with pytest.raises(MissingPackageError, match="needs no_such_package, which is not installed"):
        load_transform(f"needy_{here.name}:darken")


def compose(**options: Any) -> Any:
    albumentations = pytest.importorskip("albumentations")
    boxes = {"format": "pascal_voc", "label_fields": ["class_ids"], "min_visibility": 0.1, **options}
    steps = [
        albumentations.HorizontalFlip(p=0.5),
        albumentations.RandomBrightnessContrast(p=0.5),
        albumentations.Affine(rotate=(-20, 20), p=0.5),
        albumentations.GaussNoise(p=0.5),
    ]
    return albumentations.Compose(steps, bbox_params=albumentations.BboxParams(**boxes))


def assert_same(one: Sample, other: Sample) -> None:
    for name in ("image", "boxes_xyxy", "class_ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_albumentations_mirrors_image_and_boxes() -> None:
    albumentations = pytest.importorskip("albumentations")
    boxes = albumentations.BboxParams("pascal_voc", label_fields=["class_ids"])
    pipeline = albumentations.Compose([albumentations.HorizontalFlip(p=1)], bbox_params=boxes)
    given = sample()
    given.image.flags.writeable = False  # a view of the cache
    changed = from_albumentations(pipeline)(given, np.random.default_rng(0))
    np.testing.assert_array_equal(changed.image, given.image[:, ::-1])
    expected = given.boxes_xyxy[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (64, 0, 64, 0)
    np.testing.assert_allclose(changed.boxes_xyxy, expected, atol=1e-4)
    assert changed.class_ids.tolist() == [0, 2, 1]
    nothing = from_albumentations(pipeline)(sample(0), np.random.default_rng(0))
    assert nothing.boxes_xyxy.shape == (0, 4)
    assert nothing.class_ids.dtype == np.int64


def test_albumentations_depends_on_the_generator_alone() -> None:
    """Neither on earlier samples nor on how many threads there are."""
    transform = from_albumentations(compose())
    alone = [transform(sample(), np.random.default_rng(seed)) for seed in range(60)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda seed: transform(sample(), np.random.default_rng(seed)), range(60)))
    for one, other in zip(alone, threaded, strict=True):
        assert_same(one, other)


def test_albumentations_steps_are_independent() -> None:
    """Nothing happens to one image in 16 where four steps happen to every second, not to every second image."""
    transform, plain = from_albumentations(compose()), sample().image
    count = 400
    changed = [transform(sample(), np.random.default_rng(seed)).image for seed in range(count)]
    unchanged = sum(bool(np.array_equal(image, plain)) for image in changed)
    spread = (count / 16 * 15 / 16) ** 0.5
    assert abs(unchanged - count / 16) < 4 * spread


@pytest.mark.parametrize("options", [{"format": "coco"}, {"label_fields": ["labels"]}])
def test_albumentations_that_would_lose_the_boxes(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must move the boxes along"):
        from_albumentations(compose(**options))


def test_albumentations_without_boxes() -> None:
    albumentations = pytest.importorskip("albumentations")
    with pytest.raises(UsageError, match="must move the boxes along"):
        from_albumentations(albumentations.Compose([albumentations.HorizontalFlip(p=1)]))


def test_torchvision_that_is_missing_is_named() -> None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        with pytest.raises(MissingPackageError, match="pip install torchvision"):
            from_torchvision(lambda sample: sample)
    else:
        pytest.skip("torchvision is installed")


def test_real_torchvision() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=ImportError)
    given = sample()
    changed = from_torchvision(v2.Compose([v2.RandomHorizontalFlip(1.0), v2.SanitizeBoundingBoxes()]))(
        given, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(changed.image, given.image[:, ::-1])
    expected = given.boxes_xyxy[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (64, 0, 64, 0)
    np.testing.assert_allclose(changed.boxes_xyxy, expected, atol=1e-4)
