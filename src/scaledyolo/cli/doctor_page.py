"""The page of `scaledyolo doctor --out`: the findings, the numbers behind them, and pictures, in one file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np

from scaledyolo.data.cache import ImageSource
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.doctor import Diagnosis, Duplicates, SplitFacts
from scaledyolo.data.image_files import decode
from scaledyolo.data.preview import draw_boxes
from scaledyolo.errors import DataError
from scaledyolo.evaluate.markup import (
    Cell,
    Html,
    bar,
    cards,
    contents,
    count,
    details,
    number,
    paragraph,
    safe,
    section,
    table,
    words,
)

_PICTURES = 8  # of each split
_SIDE = 480  # pixels of an embedded picture
_JPEG_QUALITY = 80
_CLASSES = {"blocks": "bad", "warning": "bad", "fine": "good"}
_WORDS = {"blocks": "blocks", "warning": "look here", "fine": "fine"}


def page(diagnosis: Diagnosis, splits: Mapping[str, Dataset]) -> str:
    """The page as text; pictures are drawn from the data sets."""
    parts: dict[str, list[str]] = {
        "Findings": _findings(diagnosis),
        "Classes": [_classes(diagnosis.splits)],
        "Box sizes": [_sizes(diagnosis.splits)],
        "Near-duplicates": _duplicates(diagnosis.duplicates),
        "Bad items": [_problems(diagnosis.splits)] if any(split.problems for split in diagnosis.splits) else [],
        **{f"Pictures of {name}": [_gallery(dataset)] for name, dataset in splits.items()},
    }
    shown = {title: content for title, content in parts.items() if content}
    template = Template(files("scaledyolo.evaluate").joinpath("report_page.html").read_text(encoding="utf-8"))
    facts = {"network": diagnosis.model, "size": str(diagnosis.size), "data": diagnosis.splits[0].source}
    return template.substitute(
        title="Data set report",
        details=details(facts),
        contents=contents(list(shown)),
        sections="\n".join(section(title, *content) for title, content in shown.items()),
    )


def _findings(diagnosis: Diagnosis) -> list[str]:
    verdict = (
        "A training on this data set would be of no use: see what blocks below."
        if diagnosis.blocks
        else "Nothing here keeps a network from learning."
    )
    recall = "–" if diagnosis.anchors is None else f"{100 * diagnosis.anchors.recall:.1f} %"
    twins = sum(one.count for one in diagnosis.duplicates)
    problems = sum(sum(split.problems.values()) for split in diagnosis.splits)
    memory = f"{diagnosis.training_bytes / 2**30:.1f} GiB"
    rows = [
        (
            Cell(Html(f'<span class="{_CLASSES[one.level]}">{_WORDS[one.level]}</span>'), text=True),
            words(one.topic),
            words(one.text),
        )
        for one in diagnosis.findings
    ]
    return [
        paragraph(verdict),
        cards(
            [
                ("boxes the anchors can learn", recall, f"at {diagnosis.size} pixels"),
                ("images in two splits", str(twins), "or nearly the same"),
                ("bad items", str(problems), "broken files and labels"),
                ("memory", memory, f"for batches of {diagnosis.batch} in float32, estimated"),
            ]
        ),
        table(("", "topic", "what was found"), rows),
    ]


def _classes(splits: Sequence[SplitFacts]) -> Html:
    most = max([1, *(n for split in splits for n in split.class_counts.values())])
    head = ["class", *(title for split in splits for title in (split.name, ""))]
    rows: list[list[Cell | str]] = []
    for name in splits[0].class_counts:
        row: list[Cell | str] = [name]
        for split in splits:
            boxes = split.class_counts.get(name, 0)
            row += [count(boxes), bar(boxes / most, float("nan"), float("nan"))]
        rows.append(row)
    return table(head, rows, sortable=True)


def _sizes(splits: Sequence[SplitFacts]) -> Html:
    head = (
        "split", "images", "boxes", "without a box", "smallest", "10 %", "median", "90 %", "largest", "side < 8 px",
    )  # fmt: skip
    rows: list[list[Cell | str]] = []
    for split in splits:
        sizes = [number(size, 1) for size in split.sizes or (float("nan"),) * 5]
        small = Cell(f"{100 * split.small:.1f} %", split.small)
        rows.append([split.name, count(split.images), count(split.boxes), count(split.background), *sizes, small])
    return table(head, rows)


def _duplicates(found: Sequence[Duplicates]) -> list[str]:
    parts: list[str] = []
    for one in found:
        if not one.files:
            continue
        text = f"Images of {one.second} that show the same as one of {one.first}: {one.count}. Most alike:"
        parts.append(paragraph(text))
        for first, second in one.files:
            names = f"{Path(first).name} ({one.first}) and {Path(second).name} ({one.second})"
            pictures = "".join(_figure_of_file(path) for path in (first, second))
            parts.append(Html(f'<div class="photos">{pictures}</div>{paragraph(names)}'))
    return parts


def _figure_of_file(path: str) -> str:
    """The picture, or nothing where it cannot be read: the bad items say so."""
    try:
        return _figure(decode(path), "")
    except DataError:
        return ""


def _problems(splits: Sequence[SplitFacts]) -> Html:
    rows = [(split.name, words(text)) for split in splits for text in split.first_problems]
    return table(("split", "item"), rows)


def _gallery(dataset: Dataset) -> Html:
    """Images spread evenly over the data set, with their boxes."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, _PICTURES).round().astype(int)).tolist()
    source = ImageSource(dataset, _SIDE)
    figures = (_figure(draw_boxes(source.sample(i), dataset.names), Path(dataset.path(i)).name) for i in chosen)
    return Html(f'<div class="photos">{"".join(figures)}</div>')


def _figure(image: Any, name: str) -> str:
    """An RGB image as an embedded JPEG with its name."""
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    if scale < 1.0:
        image = cv2.resize(np.ascontiguousarray(image), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    code = base64.b64encode(data.tobytes()).decode()
    caption = f"<figcaption>{safe(name)}</figcaption>" if name else ""
    return f'<figure><img alt="{safe(name)}" src="data:image/jpeg;base64,{code}">{caption}</figure>'
