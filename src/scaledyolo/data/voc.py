"""Pascal VOC XML: one file per image, splits as text files in ImageSets/Main."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import DefusedXMLParser  # type: ignore[import-untyped]

from scaledyolo.data.annotations import AnnotationBuilder
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.image_files import SUFFIXES, ImageCheck, check_image
from scaledyolo.data.problems import Policy, RawBox, Report, accept_boxes
from scaledyolo.errors import DataError, nearest

_MOST_DEPTH = 100  # of elements inside elements; the format has four
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _LineParser(DefusedXMLParser):  # type: ignore[misc]  # no types published
    """Parser without entities (they can expand without bound) or depth, whose elements know their line."""

    depth = 0

    def _start(self, *arguments: Any) -> Any:
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise DefusedXmlException("elements are nested too deeply")
        element = super()._start(*arguments)
        element.set("scaledyolo-line", str(self.parser.CurrentLineNumber))
        return element

    def _end(self, *arguments: Any) -> Any:
        self.depth -= 1
        return super()._end(*arguments)


def read_voc(
    folder: str | Path,
    split: str | None = "train",
    *,
    names: Sequence[str] | None = None,
    one_based: bool = False,
    bad: Policy = "fix",
    check: ImageCheck = "header",
) -> Dataset:
    """Read one split of a VOC folder (Annotations, JPEGImages, ImageSets/Main); split=None reads every annotation.

    names: class list; else all names found in all splits, sorted, so that every split numbers them alike. one_based:
    the original VOC counts pixels from 1, inclusive; most tools that write the format today count from 0.
    """
    folder = Path(folder)
    report = Report(bad)
    stems = _split_stems(folder, split, report)
    documents = {path.stem: path for path in sorted((folder / "Annotations").glob("*.xml"))}
    roots: dict[str, Element | None] = {}
    for stem, path in documents.items():
        # Other splits are read for their class names only: their faults are not ours to report.
        roots[stem] = _parse(path, report if stem in stems or split is None else Report())
    known = tuple(names) if names is not None else _all_names(roots)
    builder = AnnotationBuilder()
    offset = 1.0 if one_based else 0.0
    for stem, (file, line) in (stems if split is not None else {s: (p, 0) for s, p in documents.items()}).items():
        if stem not in documents:
            report.add("missing-label", file, line, f"{stem} has no annotation {folder / 'Annotations' / stem}.xml")
            continue
        root = roots[stem]
        if root is None:
            continue
        path = _image_path(folder, stem, root)
        size = check_image(path, "full" if check == "full" else "header", report, named_by=(documents[stem], 1))
        if size is None or not _size_agrees(root, size, documents[stem], report):
            continue
        boxes = _read_objects(root, documents[stem], known, offset, report)
        builder.add(path, *size, accept_boxes(boxes, *size, report, documents[stem]))
    report.finish()
    source = f"{folder} [{split}]" if split else str(folder)
    return Dataset(builder.build(), known, tuple(range(len(known))), source, report)


def available_splits(folder: Path) -> list[str]:
    """Names of the split files; those of single classes (``aeroplane_train``) are left out."""
    files = (folder / "ImageSets" / "Main").glob("*.txt")
    return sorted(path.stem for path in files if "_" not in path.stem)


def _split_stems(folder: Path, split: str | None, report: Report) -> dict[str, tuple[object, int]]:
    if split is None:
        return {}
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        known = available_splits(folder)
        raise DataError(f"{path}: no such split; found are {', '.join(known) or 'none'}.{nearest(split, known)}")
    stems: dict[str, tuple[object, int]] = {}
    for number, line in enumerate(path.read_text("utf-8-sig", "surrogateescape").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if words[0] in stems:
            report.add("duplicate", path, number, f"names {words[0]} again", fixable=True)
        stems.setdefault(words[0], (path, number))
    return stems


def _parse(path: Path, report: Report) -> Element | None:
    parser = _LineParser(forbid_dtd=False, forbid_entities=True, forbid_external=True)
    try:
        parser.feed(path.read_bytes())
        root: Element = parser.close()
    except ParseError as error:
        line, column = error.position
        report.add("malformed", path, f"{line}:{column + 1}", f"not valid XML: {error.msg}")
        return None
    except DefusedXmlException as error:
        report.add("malformed", path, 1, f"refused, for no annotation needs that: {error}")
        return None
    return root


def _line(element: Element) -> str:
    return element.get("scaledyolo-line", "1")


def _all_names(roots: dict[str, Element | None]) -> tuple[str, ...]:
    found = {
        name
        for root in roots.values()
        if root is not None
        for item in root.iter("object")
        if (name := (item.findtext("name") or "").strip())
    }
    return tuple(sorted(found))


def _image_path(folder: Path, stem: str, root: Element) -> Path:
    """The file that the XML names if it exists, else the image with the stem of the XML."""
    stated = (root.findtext("filename") or "").strip()
    candidates = [folder / "JPEGImages" / stated] if stated else []
    candidates += [
        folder / place / f"{stem}{suffix}"
        for place in ("JPEGImages", "images", "Annotations")
        for suffix in sorted(SUFFIXES)
    ]
    for path in candidates:
        if path.is_file():
            return path
    return folder / "JPEGImages" / (stated or f"{stem}.jpg")


def _size_agrees(root: Element, size: tuple[int, int], file: Path, report: Report) -> bool:
    stated = (root.findtext("size/height"), root.findtext("size/width"))
    try:
        height, width = (int(float(side)) if side else 0 for side in stated)
    except (ValueError, OverflowError):
        height, width = 0, 0
    if min(height, width) < 1 or (height, width) == size:  # tools that do not know the size write 0
        return True
    element = root.find("size")
    place = _line(element) if element is not None else "1"
    reason = f"image is {size[1]}x{size[0]} pixels, stated are {width}x{height}"
    return report.add("size-mismatch", file, place, reason, fixable=True)


def _read_objects(root: Element, file: Path, names: tuple[str, ...], offset: float, report: Report) -> list[RawBox]:
    boxes = []
    class_of = {name: number for number, name in enumerate(names)}
    for item in root.iter("object"):
        name = (item.findtext("name") or "").strip()
        if name not in class_of:
            hint = nearest(name, names)
            report.add("wrong-class", file, _line(item), f"class {name!r} is not in the class list.{hint}")
            continue
        corners = [item.findtext(f"bndbox/{corner}") for corner in _CORNERS]
        if None in corners:
            absent = [corner for corner, text in zip(_CORNERS, corners, strict=True) if text is None]
            report.add("missing-field", file, _line(item), f"object has no {', '.join(absent)}")
            continue
        try:
            left, top, right, bottom = (float(text or "") for text in corners)
        except ValueError:
            report.add("not-a-number", file, _line(item), f"bndbox has a value that is not a number: {corners}")
            continue
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        corners_at = item.find("bndbox")
        place = _line(item if corners_at is None else corners_at)
        boxes.append(RawBox(left - offset, top - offset, right, bottom, class_of[name], place, difficult=difficult))
    return boxes
