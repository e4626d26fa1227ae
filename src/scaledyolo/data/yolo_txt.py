"""YOLO text labels: one file per image, one row ``class cx cy w h`` per object, fractions of the image.

Layout rules as everybody uses them: a data.yaml names the parts and the classes; the label of ``.../images/a/b.jpg`` is
``.../labels/a/b.txt`` (the last folder called images), or lies beside the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from scaledyolo.classes import read_names
from scaledyolo.data.annotations import AnnotationBuilder
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.image_files import ImageCheck, check_image, is_image
from scaledyolo.data.problems import Policy, RawBox, Report, accept_boxes
from scaledyolo.errors import DataError, nearest
from scaledyolo.strict import parse_yaml

SPLIT_SYNONYMS = {"val": ("val", "valid", "validation"), "valid": ("valid", "val", "validation")}
_NAME_FILES = ("classes.txt", "obj.names", "names.txt", "labels.txt")
_MOST_DIGITS = 4  # of a class without a name: what is larger is no class but a coordinate or an id in its place
# A fraction beyond this is a pixel coordinate by mistake, not a box that sticks out.
_LARGEST_FRACTION = 2.0
_WITH_SCORE = 6  # columns of a row that a detector wrote


def read_yolo_yaml(
    yaml_file: str | Path, split: str = "train", *, bad: Policy = "fix", check: ImageCheck = "header"
) -> Dataset:
    """Read one split of a data set described by a data.yaml (keys path, train/val/test, names, nc)."""
    yaml_file = Path(yaml_file)
    content = load_yaml(yaml_file)
    names = _names(content, yaml_file)
    root = yaml_file.parent
    if content.get("path"):
        stated = Path(str(content["path"]))
        # A path of another machine is common in shared files; the folder of the YAML is then what is meant.
        root = stated if stated.is_absolute() and stated.is_dir() else root / stated
        root = root if root.is_dir() else yaml_file.parent
    keys = [key for key in SPLIT_SYNONYMS.get(split, (split,)) if content.get(key)]
    if not keys:
        known = yaml_splits(yaml_file)
        raise DataError(
            f"{yaml_file}: has no split {split!r}, only {', '.join(known) or 'none'}.{nearest(split, known)}"
        )
    entries = content[keys[0]]
    report = Report(bad)
    images: list[tuple[Path, object, object]] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        images.extend(_list_images(_resolve(root, str(entry), yaml_file), root))
    return _read(images, names, report, check, source=f"{yaml_file} [{split}]")


def read_yolo_folder(
    folder: str | Path,
    *,
    names: Sequence[str] | None = None,
    bad: Policy = "fix",
    check: ImageCheck = "header",
) -> Dataset:
    """Read a folder of images (with labels beside it or in it) without a data.yaml.

    names: class names; else from classes.txt or the like, else "class0" to the highest id found.
    """
    folder = Path(folder)
    inner = folder / "images"
    images = _list_images(inner if inner.is_dir() else folder, folder)
    known = tuple(names) if names is not None else names_beside(folder)
    return _read(images, known, Report(bad), check, source=str(folder))


def load_yaml(yaml_file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; DataError with line and column if it is malformed."""
    try:
        content = parse_yaml(yaml_file.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{yaml_file}: no such file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise DataError(f"{yaml_file}{place}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{yaml_file}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{yaml_file}: must be a mapping with the keys train, val and names")
    return content


def yaml_splits(yaml_file: Path) -> tuple[str, ...]:
    """Splits that a data.yaml names."""
    content = load_yaml(yaml_file)
    return tuple(key for key in ("train", "val", "valid", "validation", "test") if content.get(key))


def label_file(image: Path) -> Path:
    """Label of an image: the last folder ``images`` becomes ``labels``; beside the image if there is none."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _names(content: dict[str, Any], yaml_file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if names.keys() != set(range(len(names))):
            raise DataError(f"{yaml_file}: names must be numbered 0 to {len(names) - 1}, found {list(names)!r:.200}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{yaml_file}: has no class names; give `names: [first, second]`")
    if "nc" in content and content["nc"] != len(names):
        raise DataError(f"{yaml_file}: nc is {content['nc']} but {len(names)} names are given; make them agree")
    for name in names:
        if not isinstance(name, (str, int, float)):
            raise DataError(f"{yaml_file}: every class name is one text, found the {type(name).__name__} {name!r:.80}")
    return tuple(map(str, names))


def names_beside(folder: Path) -> tuple[str, ...] | None:
    """Class names from classes.txt, obj.names or the like, in the folder or the one above; None without such a file."""
    for base in (folder, folder.parent):
        for candidate in _NAME_FILES:
            if (base / candidate).is_file():
                return read_names(base / candidate)
    return None


def infer_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Names class0, class1 ... up to the highest id in all these splits, so that every split counts alike."""
    highest = -1
    for folder in folders:
        inner = folder / "images"
        for path, _, _ in _list_images(inner if inner.is_dir() else folder, folder):
            labels = label_file(path)
            if labels.is_file():
                lines = labels.read_text("utf-8-sig", "replace").splitlines()
                first = [line.split()[0] for line in lines if line.strip()]
                ids = [int(word) for word in first if word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS]
                highest = max([highest, *ids])
    return tuple(f"class{number}" for number in range(highest + 1))


def _resolve(root: Path, entry: str, yaml_file: Path) -> Path:
    # Exporters write "../train/images" into a data.yaml that lies in the root itself.
    for candidate in (root / entry, root / entry.removeprefix("../"), root / f"{entry}/images"):
        if candidate.exists():
            return candidate
    raise DataError(f"{yaml_file}: {entry!r} does not exist under {root}; correct the path of this split")


def _list_images(place: Path, root: Path) -> list[tuple[Path, object, object]]:
    """(image, file that names it, line there) of a folder or a list file."""
    if place.is_dir():
        found = sorted(path for path in place.rglob("*") if is_image(path))
        if not found:
            raise DataError(f"{place}: contains no images; accepted are jpg, png, bmp, webp and tiff files")
        return [(path, path, "") for path in found]
    images: list[tuple[Path, object, object]] = []
    for number, line in enumerate(place.read_text("utf-8-sig", "surrogateescape").splitlines(), start=1):
        if line.strip():
            stated = Path(line.strip())
            beside = place.parent / stated
            images.append((beside if beside.exists() else root / stated, place, number))
    return images


def _read(
    images: list[tuple[Path, object, object]],
    names: tuple[str, ...] | None,
    report: Report,
    check: ImageCheck,
    source: str,
) -> Dataset:
    builder = AnnotationBuilder()
    highest = -1
    for path, file, line in images:
        # The size is needed to turn fractions into pixels, so the header is read in any case.
        size = check_image(path, "full" if check == "full" else "header", report, named_by=(file, line))
        if size is None:
            continue
        labels = label_file(path)
        boxes = _read_labels(labels, *size, len(names) if names else None, report)
        highest = max([highest, *(box.class_id for box in boxes)])
        builder.add(path, *size, accept_boxes(boxes, *size, report, labels))
    _report_orphans([path for path, _, _ in images], report)
    report.finish()
    names = names or tuple(f"class{number}" for number in range(highest + 1))
    return Dataset(builder.build(), names, tuple(range(len(names))), source, report)


def _report_orphans(images: list[Path], report: Report) -> None:
    """Labels without an image, in folders where all images were listed."""
    expected = {label_file(path) for path in images}
    for folder in {path.parent for path in expected}:
        image_folder = Path(*("images" if part == "labels" else part for part in folder.parts))
        if folder == image_folder or not folder.is_dir():
            continue  # labels beside the images: other text files may lie there
        pictured = {path.stem for path in image_folder.iterdir()} if image_folder.is_dir() else set()
        for path in sorted(set(folder.glob("*.txt")) - expected):
            if path.name not in _NAME_FILES and path.stem not in pictured:
                report.add("missing-image", path, "", "label file belongs to no image")


def _read_labels(path: Path, height: int, width: int, num_classes: int | None, report: Report) -> list[RawBox]:
    if not path.is_file():
        return []  # an image without a label file is background
    try:
        # Editors on Windows begin a file with a byte order mark, which would spoil its first number.
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        report.add("malformed", path, "", f"label file cannot be read: {error}")
        return []
    boxes = [
        _read_row(line.split(), path, number, (height, width), num_classes, report)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return [box for box in boxes if box is not None]


def _read_row(
    columns: list[str],
    path: Path,
    number: int,
    size: tuple[int, int],
    num_classes: int | None,
    report: Report,
) -> RawBox | None:
    polygon = len(columns) >= 7 and len(columns) % 2 == 1
    if len(columns) != 5 and not polygon:
        reason = f"expected 5 columns (class cx cy w h) or a polygon, found {len(columns)}"
        if len(columns) == _WITH_SCORE:
            reason += "; is the last one the score of a detector? Then take it away (`detect --save yolo` writes none)"
        elif len(columns) == 1 and len(columns[0].split(",")) > 1:
            reason += "; put spaces in place of the commas"
        report.add("column-count", path, number, reason)
        return None
    try:
        values = [float(column) for column in columns]
    except ValueError as error:
        report.add("not-a-number", path, number, f"row has a value that is not a number ({error})")
        return None
    label, *places = values
    known = num_classes if num_classes is not None else 10**_MOST_DIGITS
    if not label.is_integer() or not 0 <= label < known:
        allowed = f"a whole number from 0 to {known - 1}"
        hint = "; do the ids count from 1? They begin at 0" if label == num_classes else ""
        report.add("wrong-class", path, number, f"class is {columns[0]}, allowed is {allowed}{hint}")
        return None
    if max(places) > _LARGEST_FRACTION:
        reason = f"coordinates must be fractions of the image, found {max(places):g}; are these pixels?"
        report.add("outside", path, number, reason)
        return None
    height, width = size
    if polygon:
        report.num_polygons += 1
        left, right = min(places[0::2]), max(places[0::2])
        top, bottom = min(places[1::2]), max(places[1::2])
    else:
        x, y, w, h = places
        left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    return RawBox(left * width, top * height, right * width, bottom * height, int(label), str(number))
