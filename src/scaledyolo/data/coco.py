"""COCO JSON in and out."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from scaledyolo.data.annotations import AnnotationBuilder
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.image_files import ImageCheck, check_image
from scaledyolo.data.problems import Policy, RawBox, Report, accept_boxes
from scaledyolo.errors import DataError
from scaledyolo.strict import parse_json

_MOST_DIGITS = 18  # of an id: what int64 holds


def read_coco(
    json_file: str | Path,
    *,
    images: str | Path | None = None,
    bad: Policy = "fix",
    check: ImageCheck = "header",
) -> Dataset:
    """Read a COCO instances file.

    images: folder of the image files; found beside the JSON if not given. Classes become contiguous in the order of
    their ids; image ids and crowd flags are kept. Raises DataError for a file that is not COCO, and under
    ``bad="fail"`` for any bad item.
    """
    json_file = Path(json_file)
    content = _load(json_file)
    report = Report(bad)
    categories = sorted(_records(content, "categories", json_file), key=lambda record: record.get("id", 0))
    class_of = {record["id"]: position for position, record in enumerate(categories)}
    boxes_of = _boxes_by_image(content, class_of, report, json_file)
    folder = Path(images) if images is not None else _image_folder(json_file, content)

    builder = AnnotationBuilder()
    seen: set[int] = set()
    for position, record in enumerate(_records(content, "images", json_file)):
        place = f"images[{position}]"
        missing = {"id", "file_name"} - record.keys()
        if missing:
            report.add("missing-field", json_file, place, f"image has no {' and no '.join(sorted(missing))}")
            continue
        image_id = _whole(record["id"])
        if image_id is None or not isinstance(record["file_name"], str):
            report.add("malformed", json_file, place, "image needs a whole number as id and a text as file_name")
            continue
        if image_id in seen:
            report.add("duplicate", json_file, place, f"repeats the image id {image_id}")
            continue
        seen.add(image_id)
        path = folder / record["file_name"]
        size = _size(path, record, check, report, (json_file, place))
        if size is None:
            continue
        kept = accept_boxes(boxes_of.pop(image_id, []), *size, report, json_file)
        builder.add(path, *size, kept, image_id)
    for orphaned, orphans in boxes_of.items():
        if orphaned not in seen:
            report.add("missing-image", json_file, orphans[0].place, f"no image has the id {orphaned}")
    report.finish()
    return Dataset(
        annotations=builder.build(),
        names=tuple(str(record["name"]) for record in categories),
        original_ids=tuple(int(record["id"]) for record in categories),
        source=str(json_file),
        report=report,
    )


def to_coco(dataset: Dataset) -> dict[str, Any]:
    """The data set as a COCO dictionary with the original class ids, e.g. as ground truth of an evaluation."""
    notes = dataset.annotations
    boxes: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        rows = notes.rows(index)
        for row in range(rows.start, rows.stop):
            left, top, right, bottom = notes.boxes_xyxy[row].tolist()
            boxes.append(
                {
                    "id": row + 1,  # pycocotools takes 0 for "not matched"
                    "image_id": int(notes.image_ids[index]),
                    "category_id": dataset.original_ids[notes.class_ids[row]],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(notes.areas[row]),
                    "iscrowd": int(notes.crowd[row]),
                }
            )
    return {
        "info": {"description": dataset.source},
        "images": [
            {
                "id": int(notes.image_ids[index]),
                "file_name": Path(notes.paths[index]).name,
                "height": int(notes.sizes[index, 0]),
                "width": int(notes.sizes[index, 1]),
            }
            for index in range(len(dataset))
        ],
        "annotations": boxes,
        "categories": [
            {"id": number, "name": name} for number, name in zip(dataset.original_ids, dataset.names, strict=True)
        ],
    }


def _load(json_file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = parse_json(json_file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{json_file}: no such annotation file") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{json_file}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except ValueError as error:  # not UTF-8, or nested too deeply
        raise DataError(f"{json_file}: not valid JSON: {error}") from error
    missing = {"images", "annotations", "categories"} - (content.keys() if isinstance(content, dict) else set())
    if missing:
        raise DataError(f"{json_file}: not a COCO instances file, it has no {', '.join(sorted(missing))}")
    for position, record in enumerate(_records(content, "categories", json_file)):
        if not isinstance(record.get("id"), int) or "name" not in record:
            raise DataError(f"{json_file}:categories[{position}]: a category needs an integer id and a name")
    return content


def _records(content: dict[str, Any], key: str, json_file: Path) -> list[dict[str, Any]]:
    records = content[key]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{json_file}:{key}: must be a list of objects")
    return records


def _boxes_by_image(
    content: dict[str, Any], class_of: dict[int, int], report: Report, json_file: Path
) -> dict[int, list[RawBox]]:
    boxes: dict[int, list[RawBox]] = defaultdict(list)
    for position, record in enumerate(_records(content, "annotations", json_file)):
        place = f"annotations[{position}] (id {record['id']})" if "id" in record else f"annotations[{position}]"
        box = _read_box(record, class_of, place, report, json_file)
        if box is not None:
            image_id = _whole(record["image_id"])
            if image_id is None:
                report.add("malformed", json_file, place, f"image_id is no whole number: {record['image_id']!r:.80}")
            else:
                boxes[image_id].append(box)
    return boxes


def _read_box(
    record: dict[str, Any], class_of: dict[int, int], place: str, report: Report, json_file: Path
) -> RawBox | None:
    missing = {"image_id", "category_id", "bbox"} - record.keys()
    if missing:
        report.add("missing-field", json_file, place, f"annotation has no {' and no '.join(sorted(missing))}")
        return None
    category = _whole(record["category_id"])
    class_id = None if category is None else class_of.get(category)
    if class_id is None:
        report.add("wrong-class", json_file, place, f"no category has the id {record['category_id']!r:.80}")
        return None
    values = record["bbox"]
    if not isinstance(values, list) or len(values) != 4:
        report.add("column-count", json_file, place, f"bbox must be [left, top, width, height], found {values!r:.200}")
        return None
    try:
        left, top, width, height = map(float, values)
        area = float(record["area"]) if record.get("area") is not None else None
    except (TypeError, ValueError, OverflowError):
        report.add("not-a-number", json_file, place, f"bbox or area has a value that is not a number: {values!r:.200}")
        return None
    if width < 0 or height < 0:
        report.add("zero-size", json_file, place, f"bbox has a negative size ({width:g}x{height:g} pixels)")
        return None
    return RawBox(
        left, top, left + width, top + height, class_id, place, crowd=bool(record.get("iscrowd", 0)), area=area
    )


def _whole(value: object) -> int | None:
    """An id as the numbers of the data set hold it; some tools write it as text. None where it is no such number."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
        return int(value)
    return value if isinstance(value, int) and abs(value) < 10**_MOST_DIGITS else None


def _size(
    path: Path, record: dict[str, Any], check: ImageCheck, report: Report, named_by: tuple[Path, str]
) -> tuple[int, int] | None:
    stated = (record.get("height"), record.get("width"))
    known = all(isinstance(side, int) and side > 0 for side in stated)
    if check == "none" and known:
        return int(record["height"]), int(record["width"])
    size = check_image(path, check, report, named_by=named_by)
    if size is None or not known or size == stated:
        return size
    reason = f"image {path.name} is {size[1]}x{size[0]} pixels, stated are {stated[1]}x{stated[0]}"
    return size if report.add("size-mismatch", *named_by, reason, fixable=True) else None


def _image_folder(json_file: Path, content: dict[str, Any]) -> Path:
    """The folder with the first image, among the usual places."""
    parent = json_file.parent
    part = json_file.stem.removeprefix("instances_").removeprefix("_annotations.coco")
    candidates = [
        folder
        for base in (parent, parent.parent)
        for folder in (base / part, base / "images" / part, base / "images", base)
    ]
    stated = [record.get("file_name") for record in _records(content, "images", json_file)[:20]]
    names = [name for name in stated if isinstance(name, str)]
    for folder in candidates:
        if any((folder / name).is_file() for name in names):
            return folder
    return candidates[0]
