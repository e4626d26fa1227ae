"""One door to every format: look at what lies there, then read it."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from scaledyolo.data.coco import read_coco
from scaledyolo.data.dataset import Dataset, concatenate, without_repeats
from scaledyolo.data.image_files import ImageCheck, is_image
from scaledyolo.data.problems import Policy
from scaledyolo.data.voc import available_splits, read_voc
from scaledyolo.data.yolo_txt import (
    SPLIT_SYNONYMS,
    infer_names,
    load_yaml,
    names_beside,
    read_yolo_folder,
    read_yolo_yaml,
    yaml_splits,
)
from scaledyolo.errors import DataError, nearest

Format = Literal["coco", "yolo", "voc"]
_YAML_SUFFIXES = frozenset({".yaml", ".yml"})


def open_dataset(
    path: str | Path,
    split: str | None = "train",
    *,
    names: Sequence[str] | None = None,
    bad: Policy = "fix",
    check: ImageCheck = "header",
) -> Dataset:
    """Read a split of a data set, whatever its format.

    path: a data.yaml, a COCO JSON, or a folder in COCO, YOLO or VOC layout. split: name of the part; "val" also finds
    "valid" and "validation"; None reads all of it. names: class names, where the format has none (YOLO text without a
    data.yaml) or their order matters (VOC). Raises DataError if nothing fits.
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file or folder.{nearest(path.name, siblings)}")
    dataset = _open(path, split, names, bad, check) if split is not None else _open_all(path, names, bad, check)
    if len(dataset) == 0:
        raise DataError(f"{dataset.source}: no usable image; {dataset.report}")
    return dataset


def split_names(path: Path) -> tuple[str, ...]:
    """Names of the splits of a data set; none where it is not divided."""
    if path.is_file():
        return yaml_splits(path) if path.suffix.lower() in _YAML_SUFFIXES else ()
    kind, description = recognise(path), _data_yaml(path)
    if kind == "voc":
        return tuple(available_splits(path))
    if kind == "coco":
        return tuple(name for name in _coco_files(path) if name)
    return yaml_splits(description) if description is not None else tuple(name for name in _yolo_folders(path) if name)


def recognise(folder: Path) -> Format | None:
    """Format of a folder, by looking; None if it is none of the three."""
    if (folder / "Annotations").is_dir() and any((folder / "Annotations").glob("*.xml")):
        return "voc"
    if _data_yaml(folder) is not None:
        return "yolo"
    if _coco_files(folder):
        return "coco"
    if _yolo_folders(folder):
        return "yolo"
    return None


def _open(path: Path, split: str | None, names: Sequence[str] | None, bad: Policy, check: ImageCheck) -> Dataset:
    if path.is_dir():
        return _open_folder(path, split, names, bad, check)
    return _open_file(path, split, bad, check)


def _open_all(path: Path, names: Sequence[str] | None, bad: Policy, check: ImageCheck) -> Dataset:
    """All splits as one data set, an image that several of them name once."""
    splits = split_names(path)
    if not splits or (path.is_dir() and recognise(path) == "voc"):
        return _open(path, None, names, bad, check)
    parts = [_open(path, split, names, bad, check) for split in splits]
    return replace(without_repeats(concatenate(parts, classes="merge")), source=f"{path} [all]")


def _open_file(path: Path, split: str | None, bad: Policy, check: ImageCheck) -> Dataset:
    suffix = path.suffix.lower()
    if suffix in _YAML_SUFFIXES:
        return read_yolo_yaml(path, split or "train", bad=bad, check=check)
    if suffix == ".json":
        return read_coco(path, bad=bad, check=check)
    raise DataError(f"{path}: not a data set; give a data.yaml, a COCO .json or a folder")


def _open_folder(
    folder: Path, split: str | None, names: Sequence[str] | None, bad: Policy, check: ImageCheck
) -> Dataset:
    kind = recognise(folder)
    if kind == "voc":
        found = available_splits(folder)
        wanted = next((name for name in SPLIT_SYNONYMS.get(split or "", (split,)) if name in found), split)
        return read_voc(folder, wanted if found else None, names=names, bad=bad, check=check)
    if kind == "coco":
        files = _coco_files(folder)
        return read_coco(_choose(files, split, folder), bad=bad, check=check)
    if kind == "yolo":
        description = _data_yaml(folder)
        if description is not None:
            return read_yolo_yaml(description, split or "train", bad=bad, check=check)
        parts = _yolo_folders(folder)
        chosen = _choose(parts, split, folder)
        known = names if names is not None else names_beside(chosen) or infer_names(list(parts.values()))
        return read_yolo_folder(chosen, names=known, bad=bad, check=check)
    raise DataError(
        f"{folder}: no known data set layout; looked for Annotations/*.xml (VOC), data.yaml or images/ with labels/ "
        "(YOLO), and a .json with images and annotations (COCO)"
    )


def _choose(parts: dict[str, Path], split: str | None, folder: Path) -> Path:
    if len(parts) == 1 and "" in parts:
        return parts[""]
    for name in SPLIT_SYNONYMS.get(split or "", (split or "",)):
        if name in parts:
            return parts[name]
    known = sorted(parts)
    raise DataError(f"{folder}: has no split {split!r}; found are {', '.join(known)}.{nearest(split or '', known)}")


def _data_yaml(folder: Path) -> Path | None:
    """A YAML file with class names; data.yaml is preferred where there are several."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda path: (path.stem != "data", path.name))
    for path in files:
        if path.stem == "data" or "names" in load_yaml(path):
            return path
    return None


def _coco_files(folder: Path) -> dict[str, Path]:
    """COCO files by split name: instances_train2017.json is ``train``, valid/_annotations.coco.json is ``valid``."""
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")]):
        if path.stem.startswith(("person_keypoints_", "captions_", "stuff_", "panoptic_", "image_info_")):
            continue
        if _looks_like_coco(path):
            found[path.stem.removeprefix("instances_").rstrip("0123456789_-")] = path
    for path in sorted(folder.glob("*/_annotations.coco.json")):
        found[path.parent.name] = path
    if len(found) == 1 and not set(found) & {"train", "val", "valid", "test"}:
        return {"": next(iter(found.values()))}
    return found


def _looks_like_coco(path: Path) -> bool:
    """Whether a JSON file starts as an object; reading gigabytes only to look would take too long."""
    with path.open("rb") as file:
        head = file.read(65536)
    keys = (b'"images"', b'"annotations"', b'"categories"', b'"info"', b'"licenses"')
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{") and any(key in head for key in keys)


def _yolo_folders(folder: Path) -> dict[str, Path]:
    """Image folders by split name: ``train/images``, ``images/train``, ``images``, or images among their labels."""
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/images")) if path.is_dir()}
    images = folder / "images"
    if images.is_dir():
        parts = {path.name: path for path in sorted(images.iterdir()) if path.is_dir()}
        found.update(parts or {"": folder})
    if not found and any(is_image(path) for path in folder.iterdir()) and any(folder.glob("*.txt")):
        found[""] = folder
    return found
