"""`scaledyolo anchors`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scaledyolo.errors import counted

if TYPE_CHECKING:
    from scaledyolo.arch.spec import ModelSpec
    from scaledyolo.data.anchors import FittedAnchors


@dataclass(frozen=True)
class Anchors:
    """Fit anchor boxes to a data set by k-means and genetic refinement, and compare them with those of the network."""

    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")]
    """Folders or files of data sets, taken as one, their classes merged by name; formats are recognised by looking."""
    model: str = "yolov4-tiny"
    """Zoo name or spec file; says how many anchors each level has."""
    size: int | None = None
    """Side of the network input in pixels; by default the model's own."""
    split: str = "train"
    """Whose boxes are fitted: a split, all, a .txt file that lists images, or a share of any of these: train[:80%]."""
    threshold: float = 4.0
    """Largest ratio of sides between box and anchor that can be learnt; the recipe's assignment.anchor_threshold."""
    generations: int = 1000
    """Steps of the genetic refinement."""
    seed: int = 0
    """Of everything random."""
    out: Path | None = None
    """Spec file (.yaml) to write, with the new anchors, size and number of classes; for --model of training."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        from scaledyolo.cli.options import sized
        from scaledyolo.data.anchors import fit_anchors
        from scaledyolo.data.selection import open_part
        from scaledyolo.model import load_spec

        dataset = open_part(self.data, self.split)
        spec = sized(load_spec(self.model).with_classes(dataset.num_classes), self.size)
        fitted = fit_anchors(spec, dataset, threshold=self.threshold, seed=self.seed, generations=self.generations)
        changed = fitted.spec
        if self.json:
            fits = {"before": asdict(fitted.before), "after": asdict(fitted.after)}
            document = {"size": changed.size, "boxes": fitted.boxes, **fits}
            print(json.dumps({**document, "anchors": changed.anchors, "masks": changed.masks}, indent=2))
        else:
            print(text(fitted))
        if self.out is not None:
            write_spec(self.out, changed)
            if not self.json:
                print(f"{self.out}: written; train with --model {self.out}")
        elif not self.json and fitted.better:
            print("use them: --out FILE.yaml writes a spec file for `scaledyolo train --model FILE.yaml`")
        return 0


def write_spec(path: Path, spec: ModelSpec) -> None:
    """Write a spec file.

    Raises:
        OutputError: the file cannot be written.
    """
    import yaml

    from scaledyolo.outputs.files import write_whole

    write_whole(path, yaml.safe_dump(spec.to_dict(), sort_keys=False, default_flow_style=None).encode())


def text(fitted: FittedAnchors) -> str:
    """The comparison for people."""
    from scaledyolo.arch.lower import lower

    spec = fitted.spec
    lines = [
        f"{counted(fitted.boxes, 'box', 'boxes')} at {spec.size} pixels",
        f"  {'':<10}{'recall':>9}{'anchors a box':>15}{'fit':>8}",
    ]
    for name, fit in (("before", fitted.before), ("after", fitted.after)):
        lines.append(f"  {name:<10}{100 * fit.recall:>7.2f} %{fit.mean_matches:>15.2f}{fit.fitness:>8.3f}")
    for stride, mask in zip(sorted(lower(spec).strides), spec.masks, strict=True):
        listed = ", ".join(f"{spec.anchors[index][0]:g}x{spec.anchors[index][1]:g}" for index in mask)
        lines.append(f"  stride {stride}: {listed}")
    if not fitted.better:
        lines.append("The network's own anchors fit better; keep them.")
    return "\n".join(lines)
