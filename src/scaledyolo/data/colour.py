"""Changes of colour and sharpness; boxes stay where they are. Images are uint8 RGB and are never written in place."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


def scale_hsv(image: Image, hue: float, saturation: float, value: float) -> Image:
    """Multiply hue (modulo 180, OpenCV's uint8 circle), saturation and value (clipped at 255) by three gains.

    Specification 4.4. Plane by plane, because a multi-channel look-up table costs OpenCV twice the time.
    """
    if hue == saturation == value == 1.0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    planes = cv2.split(hsv)
    if hue != 1.0:
        table = np.rint(np.arange(256) * hue).astype(np.int64) % 180
        cv2.LUT(planes[0], table.astype(np.uint8), dst=planes[0])
    cv2.convertScaleAbs(planes[1], dst=planes[1], alpha=saturation)
    cv2.convertScaleAbs(planes[2], dst=planes[2], alpha=value)
    cv2.merge(planes, dst=hsv)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv), np.uint8)


def draw_hsv(rng: np.random.Generator, hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Gains 1 + U(-1, 1) * (hue, saturation, value) (specification 4.4)."""
    draws = 2.0 * rng.random(3) - 1.0
    return 1.0 + float(draws[0]) * hue, 1.0 + float(draws[1]) * saturation, 1.0 + float(draws[2]) * value


def draw_darknet_hsv(
    rng: np.random.Generator, hue: float, saturation: float, exposure: float
) -> tuple[float, float, float]:
    """Darknet's draw: hue shift in U(-hue, hue) of the circle; saturation and exposure times or over U(1, x)."""
    draws = rng.random(5)
    factors = (1.0 + (saturation - 1.0) * float(draws[1]), 1.0 + (exposure - 1.0) * float(draws[2]))
    scaled = [factor if draw < 0.5 else 1.0 / factor for factor, draw in zip(factors, draws[3:], strict=True)]
    return (2.0 * float(draws[0]) - 1.0) * hue, scaled[0], scaled[1]


def shift_hsv(image: Image, hue_shift: float, saturation: float, value: float) -> Image:
    """Turn the hue by a share of the circle and multiply saturation and value (specification 4.5)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    planes = cv2.split(hsv)
    table = (np.rint(np.arange(256) + hue_shift * 180.0).astype(np.int64) % 180).astype(np.uint8)
    cv2.LUT(planes[0], table, dst=planes[0])
    cv2.convertScaleAbs(planes[1], dst=planes[1], alpha=saturation)
    cv2.convertScaleAbs(planes[2], dst=planes[2], alpha=value)
    cv2.merge(planes, dst=hsv)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv), np.uint8)


def blur(image: Image, kernel: int) -> Image:
    """Box filter of ``kernel`` x ``kernel`` pixels, odd."""
    return np.asarray(cv2.blur(image, (kernel, kernel)), np.uint8)


def grayscale(image: Image) -> Image:
    """Luminance on all three channels."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
