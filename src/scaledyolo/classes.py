"""Class names and original ids of the data sets that published weights were trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scaledyolo.errors import FormatError, UsageError

COCO_NAMES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,
knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,
vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)

# COCO numbers its 80 classes from 1 to 90 with gaps.
_COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
COCO_CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in _COCO_GAPS)

VOC_NAMES = tuple(
    """aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,
sheep,sofa,train,tvmonitor""".replace("\n", "").split(",")
)


def default_names(num_classes: int) -> tuple[str, ...]:
    """COCO's names for 80 classes, VOC's for 20, else "class 0", "class 1", ..."""
    known = {len(COCO_NAMES): COCO_NAMES, len(VOC_NAMES): VOC_NAMES}
    return known.get(num_classes) or tuple(f"class {index}" for index in range(num_classes))


def default_category_ids(num_classes: int) -> tuple[int, ...] | None:
    """COCO's original ids for 80 classes, else None."""
    return COCO_CATEGORY_IDS if num_classes == len(COCO_NAMES) else None


def category_ids_of(names: Sequence[str]) -> tuple[int, ...] | None:
    """COCO's original ids where the names are COCO's in its order, else None.

    Most have to be equal, not all: Darknet's coco.names says "motorbike", "aeroplane", "sofa", "tvmonitor".
    """
    equal = sum(name == known for name, known in zip(names, COCO_NAMES, strict=False))
    return COCO_CATEGORY_IDS if len(names) == len(COCO_NAMES) and equal > len(COCO_NAMES) / 2 else None


def given_names(names: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Class names as a user gives them: a file of names, see `read_names`, or the names themselves."""
    return read_names(os.fspath(names)) if isinstance(names, (str, os.PathLike)) else tuple(names)


def replacing_names(
    names: str | os.PathLike[str] | Sequence[str], former_ids: tuple[int, ...] | None, *, num_classes: int, place: str
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Class names that replace those of a model, and its category ids: COCO's for names of COCO, else ``former_ids``.

    Raises:
        UsageError: another number of names; ``place`` says of what.
    """
    given = given_names(names)
    if len(given) != num_classes:
        raise UsageError(f"{place}: {len(given)} class names for a network of {num_classes} classes; give one for each")
    return given, category_ids_of(given) or former_ids


def read_names(path: str | Path) -> tuple[str, ...]:
    """Class names from a Darknet .names file, one a line in the order of the ids; trailing empty lines are ignored.

    Raises:
        FormatError: the file is missing, not text, empty, or has an empty line between names.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}; give a text file with one class name a line") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not a text file; give one class name a line") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise FormatError(f"{path}:{number}: empty line between class names; every line is one class")
    if not lines:
        raise FormatError(f"{path}: no class names in it")
    return tuple(line.strip() for line in lines)
