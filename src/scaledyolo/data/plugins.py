"""Other people's augmentation pipelines as a `Transform`. Neither library is imported before it is used.

:func:`load_transform` finds one by name, ``module:object``. It imports that module and so runs the code in it, with all
rights of whoever started the program: name only files that you wrote or read.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import inspect
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from scaledyolo.data.sample import Sample, Transform
from scaledyolo.errors import MissingPackageError, UsageError, nearest

_FORM = "write it as module:object, such as my_transforms:pipeline for my_transforms.py in the current folder"


def load_transform(name: str) -> Transform:
    """The transform that ``module:object`` names, the module looked for in the current folder first.

    The object is an ``albumentations.Compose``, a ``torchvision.transforms.v2`` pipeline, a function of a sample and a
    NumPy generator that returns a sample, or a function without arguments that returns one of these. The code of the
    module is run.

    Raises:
        UsageError: there is no such module or object, it fails while it is imported, or it is no transform.
        MissingPackageError: it is a torchvision pipeline, and torchvision cannot be imported.
    """
    module, attribute = _parts(name)
    found = vars(_import(module, name))
    if attribute not in found:
        raise UsageError(f"transform {name}: the module has no {attribute!r}.{nearest(attribute, found)}")
    return _adapted(found[attribute], name)


def transform_fingerprint(name: str) -> str:
    """SHA-256 of the source of the module in ``module:object``; of nothing where it has no source file.

    Raises:
        UsageError: there is no such module.
    """
    file = getattr(_import(_parts(name)[0], name), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()


def _parts(name: str) -> tuple[str, str]:
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute.isidentifier():
        raise UsageError(f"transform {name!r}: {_FORM}")
    return module, attribute


def _import(module: str, name: str) -> ModuleType:
    with _current_folder_first():
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and module.startswith(error.name):
                beside = [path.stem for path in Path.cwd().glob("*.py")]
                hint = nearest(module, beside)
                raise UsageError(
                    f"transform {name}: there is no module {module!r} here.{hint or f' {_FORM}'}"
                ) from None
            raise MissingPackageError(f"transform {name}: it needs {error.name}, which is not installed") from None
        except Exception as error:  # the user's own code: whatever it raises belongs into the sentence
            reason = " ".join(str(error).split())
            raise UsageError(f"transform {name}: importing it failed with {type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    """As `python file.py` would find modules; an installed program looks only among installed packages."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _adapted(found: Any, name: str) -> Transform:
    """The object as a transform; a function without arguments is called for it first."""
    library = _library(found)
    if library == "albumentations":
        return from_albumentations(found)
    if library == "torchvision":
        return from_torchvision(found)
    needed = _needed_arguments(found)
    if needed == 0 and not isinstance(found, type):
        return _adapted(found(), name)
    if needed == 2:
        return found  # type: ignore[no-any-return]
    raise UsageError(
        f"transform {name}: is a {type(found).__name__}; needed is an Albumentations or torchvision v2 pipeline, or a "
        "function of a sample and a NumPy generator"
    )


def _library(found: Any) -> str:
    """The package that the class of an object, or one above it, comes from."""
    packages = [cls.__module__.partition(".")[0] for cls in type(found).__mro__]
    return next((package for package in packages if package in ("albumentations", "torchvision")), "")


def _needed_arguments(found: Any) -> int | None:
    """How many arguments it cannot be called without; None where it cannot be called."""
    if not callable(found):
        return None
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None
    empty = inspect.Parameter.empty
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(item.default is empty and item.kind not in variable for item in parameters)


def from_albumentations(pipeline: Callable[..., dict[str, Any]]) -> Transform:
    """Adapt an ``albumentations.Compose`` made with ``BboxParams("pascal_voc", label_fields=["class_ids"])``.

    The pipeline sees image (h, w, 3) uint8 RGB, bboxes in pixels and class_ids. It draws from generators seeded by the
    sample's, so that its results do not depend on the number of workers; each thread works with its own copy, because
    seeding and drawing are two calls.

    Raises:
        UsageError: its boxes are in another format, or it has no place for them.
    """
    _check_box_parameters(pipeline)
    own = threading.local()

    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        seed = int(rng.integers(2**31))
        mine = getattr(own, "pipeline", None)
        if mine is None:
            mine = own.pipeline = copy.deepcopy(pipeline)
        _seed(mine, seed)
        # A copy: samples may be views of the cache, and some transforms write in place.
        result = mine(image=sample.image.copy(), bboxes=sample.boxes_xyxy, class_ids=sample.class_ids)
        return replace(
            sample,
            image=np.ascontiguousarray(result["image"]),
            boxes_xyxy=np.asarray(result["bboxes"], np.float32).reshape(-1, 4),
            class_ids=np.asarray(result["class_ids"]).reshape(-1).astype(np.int64),
        )

    return transform


def _seed(pipeline: Any, seed: int) -> None:
    """Seed a pipeline, its steps together.

    ``set_random_seed`` of Albumentations 2 gives every step a generator of its own with the same seed: steps of like
    probability would then all happen or none. Generators that they share keep them independent.
    """
    if hasattr(pipeline, "set_random_state"):
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
    elif hasattr(pipeline, "set_random_seed"):
        pipeline.set_random_seed(seed)


def _check_box_parameters(pipeline: Any) -> None:
    """Refuse a pipeline that would leave the boxes where they were, or read them in another format."""
    processors = getattr(pipeline, "processors", None)
    if processors is None:
        return  # no Compose of the library: the caller's own stand-in
    parameters = getattr(processors.get("bboxes"), "params", None)
    form, fields = getattr(parameters, "format", None), getattr(parameters, "label_fields", None)
    if form != "pascal_voc" or list(fields or ()) != ["class_ids"]:
        raise UsageError(
            "the Albumentations pipeline must move the boxes along: make it with "
            'bbox_params=BboxParams("pascal_voc", label_fields=["class_ids"])'
        )


def from_torchvision(pipeline: Callable[..., Any]) -> Transform:
    """Adapt a ``torchvision.transforms.v2`` pipeline.

    It sees a dictionary of an image (3, h, w) uint8, tv_tensors boxes in pixels, and labels; boxes that it drops take
    their labels along (``v2.SanitizeBoundingBoxes``). torch's global generator, from which it draws, is seeded from the
    sample's generator and then restored. All threads share that generator, so one sample is transformed at a time; no
    network of the family draws from it meanwhile.

    Raises:
        MissingPackageError: torchvision cannot be imported.
    """
    try:
        torch = importlib.import_module("torch")
        tv_tensors = importlib.import_module("torchvision.tv_tensors")
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch fails with the latter
        raise MissingPackageError(
            "a torchvision pipeline needs torchvision 0.16 or later: pip install torchvision"
        ) from error

    one_at_a_time = threading.Lock()

    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        planes = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(sample.boxes_xyxy.copy()),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(sample.height, sample.width),
        )
        with one_at_a_time, torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            result = pipeline(
                {
                    "image": tv_tensors.Image(planes),
                    "boxes": boxes,
                    "labels": torch.from_numpy(sample.class_ids.copy()),
                }
            )
        return replace(
            sample,
            image=np.ascontiguousarray(result["image"].numpy().transpose(1, 2, 0)),
            boxes_xyxy=result["boxes"].numpy().astype(np.float32).reshape(-1, 4),
            class_ids=result["labels"].numpy().astype(np.int64),
        )

    return transform
