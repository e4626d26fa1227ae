"""Augmentation as a whole: one typed configuration and the object that draws samples by it.

Order of training specification 4.4: mosaic (or letterbox) with affine > mixup or CutMix > HSV > blur, grayscale,
cutout > flips > the user's own transform. Randomness comes only from the generator passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from scaledyolo.data import colour, mixing
from scaledyolo.data.darknet_style import jitter_crop, jitter_mosaic
from scaledyolo.data.geometry import (
    AffineRange,
    BoxRules,
    Movement,
    Tile,
    clip_boxes,
    draw_movement,
    flip_sample,
    move_tiles,
)
from scaledyolo.data.mosaic import MosaicCentre, mosaic_four, mosaic_nine
from scaledyolo.data.placement import place_letterbox
from scaledyolo.data.sample import Sample, Transform
from scaledyolo.errors import UsageError

Family = Literal["affine", "darknet"]


@dataclass(frozen=True)
class AugmentConfig:
    """Everything that a recipe decides about augmentation; defaults are those of the csp branch of 2021 (table 3.8).

    Probabilities are per sample in 0..1.
    """

    family: Family = "affine"  # affine: the PyTorch branches; darknet: jittered crops (tiny)

    mosaic: float = 1.0  # probability of a mosaic; the branches always use it while augmenting
    mosaic_nine: float = 0.0  # share of the mosaics that have nine images; YOLOv7 .2
    mosaic_centre: MosaicCentre = "random"  # fixed in the large branch, whose translate of .5 replaces it

    degrees: float = 0.0  # rotation each way; 0 in every table
    translate: float = 0.1  # share of the side each way; large .5, csp of 2020 0, csp .1, YOLOv7 .2
    scale: float = 0.9  # factor 1 - s to 1 + s; large .5 (.8 in fine-tuning), csp .9
    scale_extra: float = 0.0  # added to the upper end; YOLOv7 .1
    shear: float = 0.0  # degrees each way; 0 in every table
    perspective: float = 0.0  # per pixel; 0 in every table, useful up to .001

    min_side: float = 2.0  # boxes must be larger than this on both sides, in pixels of the output (4.3)
    max_aspect: float = 20.0  # and less elongated than this (4.3)
    min_area_ratio: float = 0.1  # and this much of their area visible: large .2, csp and YOLOv7 .1 (4.3)

    mixup: float = 0.0  # probability; large fine-tuning .2, YOLOv7 .15
    mixup_alpha: float = 8.0  # both parameters of the Beta distribution (4.4)
    cutmix: float = 0.0  # probability; used by YOLOv4 for its classifier only (4.5)

    hue: float = 0.015  # gain 1 +- hue; same in every table (family darknet: shift of the circle, .1)
    saturation: float = 0.7  # gain 1 +- saturation (family darknet: factor up to 1.5)
    value: float = 0.4  # gain 1 +- value (family darknet: exposure, factor up to 1.5)
    blur: float = 0.0  # probability of a box filter of 3, 5 or 7 pixels
    grayscale: float = 0.0  # probability
    cutout: float = 0.0  # probability; present but not called in the branches, suggested .9 (4.4)

    flip_horizontal: float = 0.5  # probability; same in every table
    flip_vertical: float = 0.0  # probability; 0 in every table

    jitter: float = 0.3  # family darknet: each side moves by up to this share; csp, P5, P6 cfgs .1 (4.5)
    resize: float = 1.5  # family darknet: extra zoom up to this factor either way (4.5)

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"augmentation: {name} is a probability from 0 to 1, found {getattr(self, name)}")
        if self.family not in ("affine", "darknet"):
            raise UsageError(f"augmentation: family must be affine or darknet, found {self.family!r}")
        if self.mosaic_centre not in ("fixed", "random"):
            raise UsageError(f"augmentation: mosaic_centre must be fixed or random, found {self.mosaic_centre!r}")
        if not 0.0 <= self.scale < 1.0:
            raise UsageError(f"augmentation: scale must be from 0 to below 1, found {self.scale}")

    @property
    def affine_range(self) -> AffineRange:
        """The geometric limits."""
        return AffineRange(
            degrees=self.degrees,
            translate=self.translate,
            scale_low=1.0 - self.scale,
            scale_high=1.0 + self.scale + self.scale_extra,
            shear=self.shear,
            perspective=self.perspective,
        )

    @property
    def box_rules(self) -> BoxRules:
        """Which boxes survive."""
        return BoxRules(self.min_side, self.max_aspect, self.min_area_ratio)

    def without_mixing(self) -> AugmentConfig:
        """The same with whole images only: no mosaic, mixup or CutMix (rectangular batches, last epochs)."""
        return replace(self, mosaic=0.0, mixup=0.0, cutmix=0.0)


_PROBABILITIES = (
    "mosaic",
    "mosaic_nine",
    "mixup",
    "cutmix",
    "blur",
    "grayscale",
    "cutout",
    "flip_horizontal",
    "flip_vertical",
)

# No change at all: letterbox only.
NO_AUGMENTATION = AugmentConfig(
    mosaic=0.0, translate=0.0, scale=0.0, hue=0.0, saturation=0.0, value=0.0, flip_horizontal=0.0
)


@dataclass(frozen=True)
class Augmenter:
    """Draws augmented samples.

    sample_of gives a sample by index with the long side ``size``; num_images is the range of partners for mosaics. A
    sample comes out as (height, width) = frame * zoom, rounded.
    """

    sample_of: Callable[[int], Sample]
    num_images: int
    size: int
    config: AugmentConfig = field(default_factory=AugmentConfig)
    transform: Transform | None = None

    def __call__(
        self,
        index: int,
        rng: np.random.Generator,
        *,
        frame: tuple[int, int] | None = None,
        zoom: float = 1.0,
    ) -> Sample:
        """One augmented sample; frame (height, width) is size x size unless given (rectangular batches)."""
        config = self.config
        frame = frame or (self.size, self.size)
        output = (round(frame[0] * zoom), round(frame[1] * zoom))
        sample = self._geometry(index, rng, frame, output, zoom)
        # Drawn together and always, so that changing one probability leaves the other draws as they are.
        chances = rng.random(7)
        if chances[0] < config.mixup:
            other = self._geometry(self._partner(rng), rng, frame, output, zoom)
            sample = mixing.mixup(sample, other, rng, alpha=config.mixup_alpha)
        if chances[1] < config.cutmix:
            other = self._geometry(self._partner(rng), rng, frame, output, zoom)
            sample = mixing.cutmix(sample, other, rng, rules=config.box_rules)
        sample = self._recolour(sample, rng, chances)
        if chances[4] < config.cutout:
            sample = mixing.cutout(sample, rng)
        sample = flip_sample(
            sample,
            horizontal=bool(chances[5] < config.flip_horizontal),
            vertical=bool(chances[6] < config.flip_vertical),
        )
        return sample if self.transform is None else self._user_transform(sample, rng, output)

    def _partner(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.num_images))

    def _geometry(
        self,
        index: int,
        rng: np.random.Generator,
        frame: tuple[int, int],
        output: tuple[int, int],
        zoom: float,
    ) -> Sample:
        config = self.config
        draws = rng.random(2)
        square = frame == (self.size, self.size)
        mosaic = square and bool(draws[0] < config.mosaic)
        if config.family == "darknet":
            return self._darknet(index, rng, output, mosaic)
        if not mosaic:
            tile = letterbox_tile(self.sample_of(index), frame)
            movement = draw_movement(rng, config.affine_range, frame, frame)
            return move_tiles([tile], frame, _fitted(movement, frame, output, zoom), output, config.box_rules)
        nine = bool(draws[1] < config.mosaic_nine)
        partners = rng.integers(self.num_images, size=8 if nine else 3)
        samples = [self.sample_of(number) for number in (index, *partners.tolist())]
        if nine:
            tiles = mosaic_nine(samples, self.size, rng)
        else:
            tiles = mosaic_four(samples, self.size, rng, centre=config.mosaic_centre)
        canvas = (2 * self.size, 2 * self.size)
        movement = draw_movement(rng, config.affine_range, canvas, frame)
        return move_tiles(tiles, canvas, _fitted(movement, frame, output, zoom), output, config.box_rules)

    def _darknet(self, index: int, rng: np.random.Generator, output: tuple[int, int], mosaic: bool) -> Sample:
        config = self.config
        if not mosaic:
            return jitter_crop(
                self.sample_of(index), rng, output, jitter=config.jitter, resize=config.resize, rules=config.box_rules
            )
        indices = [index, *rng.integers(self.num_images, size=3).tolist()]
        samples = [self.sample_of(number) for number in indices]
        return jitter_mosaic(samples, rng, output, jitter=config.jitter, resize=config.resize, rules=config.box_rules)

    def _recolour(self, sample: Sample, rng: np.random.Generator, chances: np.ndarray) -> Sample:
        config = self.config
        image = sample.image
        if config.family == "darknet":
            gains = colour.draw_darknet_hsv(rng, config.hue, config.saturation, config.value)
            image = colour.shift_hsv(image, *gains)
        elif config.hue or config.saturation or config.value:
            gains = colour.draw_hsv(rng, config.hue, config.saturation, config.value)
            image = colour.scale_hsv(image, *gains)
        if chances[2] < config.blur:
            image = colour.blur(image, (3, 5, 7)[int(rng.integers(3))])
        if chances[3] < config.grayscale:
            image = colour.grayscale(image)
        return sample if image is sample.image else replace(sample, image=image)

    def _user_transform(self, sample: Sample, rng: np.random.Generator, output: tuple[int, int]) -> Sample:
        assert self.transform is not None
        changed = self.transform(sample, rng)
        if changed.image.shape != (*output, 3) or changed.image.dtype != np.uint8:
            raise UsageError(
                f"the transform returned an image {changed.image.dtype} {changed.image.shape}, needed is uint8 "
                f"{(*output, 3)}; leave resizing and normalising out of it"
            )
        boxes = clip_boxes(changed.boxes_xyxy.astype(np.float32), *output)
        large = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
        return replace(changed, boxes_xyxy=boxes[large], class_ids=changed.class_ids[large])


def letterbox_tile(sample: Sample, frame: tuple[int, int]) -> Tile:
    """The sample centred on a frame (height, width), its aspect kept."""
    placed = place_letterbox(sample.height, sample.width, *frame)
    return Tile(sample, placed.pad_left, placed.pad_top, placed.scale_x, placed.scale_y)


def _fitted(movement: Movement, frame: tuple[int, int], output: tuple[int, int], zoom: float) -> Movement:
    """The movement onto the output, whose sides are those of the frame times zoom, rounded."""
    if output == frame:
        return movement
    factors = np.diag((output[1] / frame[1], output[0] / frame[0], 1.0))
    return Movement(factors @ movement.matrix, movement.scale * zoom)
