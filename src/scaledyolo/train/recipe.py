"""Recipes: everything that decides how a network is trained, as frozen typed values with their sources.

A recipe is data: it imports no torch and computes nothing. Sources in the comments: ``paper`` is
Scaled-YOLOv4 (arXiv 2011.08036), ``large``, ``csp`` and ``csp 2020`` are the published hyper-parameters of
its two PyTorch branches, ``v7`` those of YOLOv7 (arXiv 2207.02696), ``YOLOX`` arXiv 2107.08430, ``ours`` a
choice of this project.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import yaml

from scaledyolo.data.augment import AugmentConfig
from scaledyolo.errors import UsageError, nearest
from scaledyolo.strict import from_mapping, override, to_mapping

BoxMetric = Literal["iou", "giou", "diou", "ciou"]
AssignmentRule = Literal["scaled", "yolov3", "yolov4"]


@dataclass(frozen=True, slots=True)
class Optimiser:
    """Stochastic gradient descent, or Adam; three parameter groups (see :mod:`scaledyolo.train.optim`)."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"  # large, csp, v7: SGD with Nesterov momentum
    learning_rate: float = 0.01  # large, csp, v7; not scaled with the batch, because the loss is a sum over images
    momentum: float = 0.937  # large, csp, v7; first beta of Adam
    weight_decay: float = 5e-4  # large, csp, v7; for the nominal batch, on convolution weights only
    nominal_batch: int = 64  # images an optimiser step stands for; smaller batches are accumulated (large, csp, v7)

    def __post_init__(self) -> None:
        _check_range("optimiser.learning_rate", self.learning_rate, above=0.0)
        _check_range("optimiser.momentum", self.momentum, least=0.0, below=1.0)
        _check_range("optimiser.weight_decay", self.weight_decay, least=0.0)
        _check_range("optimiser.nominal_batch", self.nominal_batch, least=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, and the learning rate on the way: a warm-up by the step, then a decay by the epoch."""

    epochs: int = 300  # paper 4.2 for csp, P5-P7; the decay reaches its end here
    first_epoch: int = 0  # where this stage begins: a second stage continues on the decay of the whole training
    decay: Literal["cosine", "linear", "steps"] = "cosine"  # large, csp, v7: cosine; Darknet: steps
    final_factor: float = 0.2  # share of the learning rate at the end; large, csp: 0.2 (steps do not use it)
    milestones: tuple[float, ...] = (0.8, 0.9)  # steps only: shares of the epochs ... (Darknet cfgs)
    milestone_factor: float = 0.1  # ... after each of which the rate is multiplied by this (Darknet cfgs)
    warmup_epochs: float = 3.0  # large, csp, v7
    warmup_min_steps: int = 1000  # large, csp, v7: the warm-up takes at least this many batches; Darknet's burn_in
    warmup_power: float = 1.0  # large, csp, v7: linear; Darknet: 4
    warmup_momentum: float = 0.8  # momentum at the first step; csp, v7: 0.8, large and csp 2020: 0.9
    warmup_bias_rate: float = 0.1  # learning rate of the biases at the first step; large, csp, v7
    plain_epochs: int = 0  # last epochs without mosaic and mixup; large, csp, v7: none, YOLOX: 15

    def __post_init__(self) -> None:
        _check_range("schedule.epochs", self.epochs, least=1)
        _check_range("schedule.first_epoch", self.first_epoch, least=0, below=self.epochs)
        _check_range("schedule.final_factor", self.final_factor, above=0.0, most=1.0)
        _check_range("schedule.warmup_epochs", self.warmup_epochs, least=0.0)
        _check_range("schedule.warmup_min_steps", self.warmup_min_steps, least=0)
        _check_range("schedule.warmup_power", self.warmup_power, above=0.0)
        _check_range("schedule.warmup_momentum", self.warmup_momentum, least=0.0, below=1.0)
        _check_range("schedule.warmup_bias_rate", self.warmup_bias_rate, least=0.0)
        _check_range("schedule.plain_epochs", self.plain_epochs, least=0)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which slots (anchor, cell) answer for which object; the rules are in :mod:`scaledyolo.train.assign`."""

    rule: AssignmentRule = "scaled"  # large, csp: "scaled"; Darknet: "yolov3", "yolov4"
    anchor_threshold: float = 4.0  # scaled: largest ratio of sides between object and anchor; the decoder ends there
    # scaled: how near, in cells, a centre must be to a border for the next cell to answer; large, csp. 0: only the own
    # cell, for heads of the exponential family, whose centres hardly leave it.
    neighbour_reach: float = 0.5
    iou_threshold: float = 0.213  # yolov4: other anchors above this overlap answer too (yolov4.cfg; csp cfgs 0.2)
    ignore_threshold: float = 0.7  # yolov3, yolov4: predictions that overlap an object more are no background

    def __post_init__(self) -> None:
        _check_range("assignment.anchor_threshold", self.anchor_threshold, above=1.0)
        _check_range("assignment.neighbour_reach", self.neighbour_reach, least=0.0, most=1.0)
        _check_range("assignment.iou_threshold", self.iou_threshold, least=0.0, most=1.0)
        _check_range("assignment.ignore_threshold", self.ignore_threshold, least=0.0, most=1.0)


@dataclass(frozen=True, slots=True)
class Loss:
    """Weights and options of the three parts of the loss; the parts are in :mod:`scaledyolo.train.loss`."""

    box_gain: float = 0.05  # large, csp, v7
    objectness_gain: float = 0.7  # csp, v7; large and csp 2020: 1.0
    class_gain: float = 0.3  # csp, v7; large and csp 2020: 0.5; for 80 classes, scaled with their number
    box_metric: BoxMetric = "ciou"  # large, csp, v7
    # How much of the objectness target is the overlap, the rest is 1; large, csp, v7: 1, Darknet's rules: 0.
    objectness_iou_share: float = 1.0
    objectness_balance: tuple[float, ...] = ()  # weight of each level, smallest stride first; empty: by their number
    many_level_gain: float = 1.4  # on objectness with four levels or more; large, csp (v7: 1)
    objectness_positive_weight: float = 1.0  # large, csp, v7
    class_positive_weight: float = 1.0  # large, csp, v7
    label_smoothing: float = 0.0  # large, csp, v7: none (YOLOv4's table 4: it costs 5 AP)
    focal_gamma: float = 0.0  # 0 is no focal weighting; large, csp, v7: 0, EfficientDet 1.5, RetinaNet 2
    focal_alpha: float = 0.25  # weight of the positives under focal weighting; RetinaNet

    def __post_init__(self) -> None:
        for name in ("box_gain", "objectness_gain", "class_gain", "focal_gamma", "many_level_gain"):
            _check_range(f"loss.{name}", getattr(self, name), least=0.0)
        for name in ("objectness_positive_weight", "class_positive_weight"):
            _check_range(f"loss.{name}", getattr(self, name), above=0.0)
        for name in ("objectness_iou_share", "focal_alpha", "label_smoothing"):
            _check_range(f"loss.{name}", getattr(self, name), least=0.0, most=1.0)
        for weight in self.objectness_balance:
            _check_range("loss.objectness_balance", weight, least=0.0)


@dataclass(frozen=True, slots=True)
class Ema:
    """Exponential moving average of the weights, which is the model that is evaluated and shipped."""

    decay: float = 0.9999  # of the late updates; large, csp, v7
    ramp_updates: float = 2000.0  # updates in which the decay rises to 63 % of that; large, csp, v7

    def __post_init__(self) -> None:
        _check_range("ema.decay", self.decay, least=0.0, below=1.0)
        _check_range("ema.ramp_updates", self.ramp_updates, above=0.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides how a network is trained, except the network and the data.

    Raises:
        UsageError: a value is outside its range; names the key.
    """

    name: str
    batch: int = 64  # images of one forward pass over all devices; large: 64 on 4 GPUs
    size: int = 0  # side of the square input in pixels; 0: the size that the network was designed for
    multi_scale: float = 0.0  # each batch is resized by a factor in [1 - this, 1 + this]; csp, large offer 0.5, off
    # Training begins with small images, which cost less, and ends with full ones (EfficientNetV2, arXiv 2104.00298, 4):
    first_size: float = 1.0  # side in the first epoch as a share of the size; it grows evenly ...
    full_size_from: float = 0.7  # ... until this share of the epochs; published recipes: no growth
    rectangular: bool = False  # batches of like aspect, each on its smallest canvas, without mosaics; csp, large: off
    image_weights: bool = False  # images are drawn in proportion to what their classes still miss; csp, large: off
    # Once-for-all: networks inside this one that learn along, such as without-stage-p7 (train.sandwich); ours, off.
    subnets: tuple[str, ...] = ()
    # Rounds weights and maps in training as OpenVINO will in 8 bits (net.rounding), for networks that lose by it; off.
    quantise_aware: bool = False
    # Whether a training without weights of its own begins with the model that comes with the package, where that is the
    # same network (train.transfer); published recipes train from scratch.
    pretrained: bool = False
    # Whether anchors are fitted to the data where those of the network could learn too few of its boxes, as by the
    # branches; not where predictions are taken over, which have learnt their anchors (train.fitted_anchors). It gained
    # nothing where it was tried (docs/results.md), so no recipe asks for it.
    fit_anchors: bool = False
    continues: str = ""  # the recipe whose final checkpoint, optimiser state included, this stage starts from
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    assignment: Assignment = field(default_factory=Assignment)
    loss: Loss = field(default_factory=Loss)
    ema: Ema = field(default_factory=Ema)
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_range("batch", self.batch, least=1)
        _check_range("size", self.size, least=0)
        _check_range("multi_scale", self.multi_scale, least=0.0, below=1.0)
        _check_range("first_size", self.first_size, above=0.0, most=1.0)
        _check_range("full_size_from", self.full_size_from, least=0.0, most=1.0)
        if self.multi_scale and self.first_size < 1.0:
            raise UsageError("recipe: multi_scale and first_size both decide the side of a batch; set one of them")
        if self.quantise_aware and self.subnets:
            raise UsageError("recipe: quantise_aware trains the whole network only; cut out a subnet and train that")

    def replace(self, *assignments: str) -> Recipe:
        """This recipe with values changed as on the command line, ``"schedule.epochs=40"``.

        Raises:
            UsageError: an unknown key (names the nearest), a value of another type or outside its range.
        """
        recipe = self
        for assignment in assignments:
            recipe = override(recipe, assignment, "recipe")
        return recipe

    def to_yaml(self) -> str:
        """This recipe as YAML text, every value written out; :meth:`from_yaml` gives back an equal recipe."""
        return yaml.safe_dump(to_mapping(self), sort_keys=False)

    def stages(self, *assignments: str) -> tuple[Recipe, ...]:
        """The trainings that make up this one, in order: those that it continues first.

        ``assignments`` are the changes that were made to this recipe; the stages before get them too, but for their
        length, which follows from :attr:`Schedule.first_epoch`.

        Raises:
            UsageError: it continues an unknown recipe.
        """
        if not self.continues or not self.schedule.first_epoch:
            return (self,)
        shared = [text for text in assignments if text.partition("=")[0].strip() not in _OWN_KEYS]
        before = recipe_named(self.continues).replace(*shared)
        before = replace(before, schedule=replace(before.schedule, epochs=self.schedule.first_epoch))
        return (*before.stages(*shared), self)

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe") -> Recipe:
        """Read what :meth:`to_yaml` wrote, or a part of it: keys that are missing keep their defaults.

        Args:
            text: the YAML document.
            where: what to call it in errors, for example its file name.

        Raises:
            UsageError: no YAML, an unknown key (names the nearest), a value of another type or outside its
                range.
        """
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
        return from_mapping(cls, document, where)


# What --set changes in the stage that was named only.
_OWN_KEYS = frozenset({"name", "continues", "schedule.epochs", "schedule.first_epoch"})


def _check_range(
    key: str,
    value: float,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise UsageError naming ``key`` unless ``value`` is inside; NaN never is."""
    bounds: tuple[tuple[float | None, str, Callable[[float, float], bool]], ...] = (
        (least, "at least", operator.ge),
        (above, "greater than", operator.gt),
        (most, "at most", operator.le),
        (below, "less than", operator.lt),
    )
    given = [(bound, words, holds) for bound, words, holds in bounds if bound is not None]
    if not all(holds(value, bound) for bound, _, holds in given):
        wanted = " and ".join(f"{words} {bound:g}" for bound, words, _ in given)
        raise UsageError(f"recipe: {key} must be {wanted}, got {value}")


# The csp branch since its rewrite of 2021: the defaults of all settings.
_CSP_2021 = Recipe("csp")

# The large branch: P5, P6 and P7 from scratch. Its fixed mosaic centre needs the large translation.
_LARGE = Recipe(
    "large",
    schedule=Schedule(warmup_momentum=0.9),
    loss=Loss(objectness_gain=1.0, class_gain=0.5),
    augmentation=AugmentConfig(mosaic_centre="fixed", translate=0.5, scale=0.5, min_area_ratio=0.2),
)

# The second stage of large. Its authors continue from epoch 298 of 300, the last checkpoint with optimiser state;
# here the first stage keeps that state, so the second begins where the first ends. The warm-up is not repeated, and the
# cosine is that of 450 epochs: the rate doubles, from 0.2 to 0.4 of its maximum.
_LARGE_FINETUNE = replace(
    _LARGE,
    name="large-finetune",
    continues="large",
    schedule=replace(_LARGE.schedule, epochs=450, first_epoch=300),
    augmentation=replace(_LARGE.augmentation, scale=0.8, mixup=0.2),
)

# 600 epochs: paper 4.2. The rest is what the same authors chose for their next tiny model (v7 tiny, without its pasted
# patches), since the paper's yolov4-tiny was trained with Darknet.
_TINY = Recipe(
    "tiny",
    schedule=Schedule(epochs=600, final_factor=0.01),
    loss=Loss(objectness_gain=1.0, class_gain=0.5),
    augmentation=AugmentConfig(translate=0.1, scale=0.5, scale_extra=0.1, mosaic_nine=0.2, mixup=0.05),
)

# A few hundred images from a pretrained checkpoint: v7 custom in a short schedule.
_CUSTOM = Recipe(
    "custom",
    batch=16,  # ours: four batches to a step at the nominal batch
    pretrained=True,
    schedule=Schedule(
        epochs=100,  # ours
        final_factor=0.1,  # v7 custom
        warmup_min_steps=100,  # ours: 1000 batches would be half of such a training
        plain_epochs=15,  # YOLOX 2.3: the last epochs see images as they will come
    ),
    augmentation=AugmentConfig(translate=0.2, scale=0.5, scale_extra=0.1, mosaic_nine=0.2),
)

# Ours, measured in docs/results.md: a few hundred images, from scratch or from other weights, in the time of a coffee.
_SMALL = Recipe(
    "small",
    batch=16,
    pretrained=True,
    # An optimiser step for every batch: at the nominal batch of 64 so few images would give too few steps.
    optimiser=Optimiser(learning_rate=0.02, nominal_batch=16),
    schedule=Schedule(epochs=60, final_factor=0.02, warmup_min_steps=60, plain_epochs=10),
    loss=Loss(objectness_gain=1.0, class_gain=0.5),
    ema=Ema(decay=0.998, ramp_updates=200),  # the published ramp would outlast such a training
    augmentation=AugmentConfig(translate=0.1, scale=0.5, scale_extra=0.1),
)

# Ours, measured in docs/export.md: a trained network learns to live with 8 bits. Small steps without a jump of the
# biases, an average that follows within an epoch or two, and whole images at the end, as ranges are taken from such.
_INT8 = replace(
    _SMALL,
    name="int8",
    quantise_aware=True,
    optimiser=replace(_SMALL.optimiser, learning_rate=0.001),
    schedule=replace(
        _SMALL.schedule, epochs=10, warmup_epochs=1.0, warmup_min_steps=0, warmup_bias_rate=0.0, plain_epochs=5
    ),
    ema=Ema(decay=0.99, ramp_updates=20),
)

# The name by which a recipe is asked for. The names with a year freeze what the csp branch published at that time.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            _CSP_2021,
            replace(_CSP_2021, name="csp-2021"),
            replace(_LARGE, name="csp-2020", augmentation=replace(_LARGE.augmentation, translate=0.0)),
            _LARGE,
            _LARGE_FINETUNE,
            _TINY,
            _CUSTOM,
            _SMALL,
            _INT8,
        )
    }
)


def recipe_named(name: str) -> Recipe:
    """The recipe of this name, or the one in the YAML file at this path.

    Raises:
        UsageError: neither a known name (names the nearest) nor a readable YAML file.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = ", ".join(RECIPES)
        raise UsageError(f"unknown recipe {name!r};{nearest(name, RECIPES)} Known: {known}, or a .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe file {name} cannot be read: {error}") from None
    return Recipe.from_yaml(text, where=name)
