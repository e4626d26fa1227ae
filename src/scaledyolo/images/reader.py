"""Any image file -> H x W x 3 uint8 RGB, upright, or one sentence that says what is wrong with it.

JPEG and PNG, which are nearly all images there are, go through OpenCV (libjpeg-turbo, libpng); the rest and
the odd kinds (CMYK, palettes, TIFF, WebP, GIF ...) through Pillow. Conventions:

- Alpha is dropped, not blended: the colours under it are what the camera or the artist stored, any background
  colour would be invented.
- 16 bits become 8 by rounding ``value * 255 / 65535``; 12-bit data stored in 16 bits therefore comes out
  dark, as everywhere.
- Floating-point and 32-bit integer images are refused: nobody but their owner knows which value is white.
- EXIF orientation is applied; one that only XMP states is not, as in OpenCV. Of an animation, the first
  picture is taken.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from scaledyolo.errors import SourceError
from scaledyolo.images.header import (
    SNIFF_BYTES,
    describe_foreign,
    read_jpeg_header,
    read_png_header,
    read_webp_size,
    require_jpeg_end,
    require_whole_png,
    sniff_format,
)

if TYPE_CHECKING:
    from PIL import Image

# A 200 MP image takes 600 MB as RGB; larger ones are aerial mosaics, to be tiled first, or attacks.
MAX_PIXELS = 200_000_000

ORIENTATION_TAG = 0x0112
_TIFF_BITS_PER_SAMPLE = 258
_DEEP_IN_32 = ("PPM", "PNG")  # Pillow scales deep PPM to 16 bits and keeps them in 32


def read_image(
    source: str | os.PathLike[str] | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
    reduced: bool = False,
) -> np.ndarray:
    """Read one image.

    Args:
        source: path of a file, or the content of one.
        max_pixels: refuse larger images; the header is asked before anything is decoded.
        name: how errors call it; by default the path.
        reduced: for a first look, decode grey and YCbCr JPEGs at an eighth of their height and width, rounded up, which
            takes a fraction of the time; everything else comes whole.

    Returns:
        H x W x 3, uint8, RGB, upright (EXIF orientation applied), writable and contiguous.

    Raises:
        SourceError: the file is missing, unreadable, empty, no image, cut off, damaged, too large, or holds
            values (float, 32-bit) that have no defined brightness.
    """
    if isinstance(source, bytes):
        name = name or "the image data"
        data = source
        require_image(data[:SNIFF_BYTES], name)
    else:
        name = name or printable(source)
        data = _read_file(Path(source), name)
    image = _decode(data, name, max_pixels, reduced)
    if 0 in image.shape:
        raise SourceError(f"{name} has no pixels")
    return image


def printable(path: str | os.PathLike[str]) -> str:
    """The path as one line of text: control characters and undecodable bytes escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def reason_of(error: BaseException) -> str:
    """What the operating system or a library says, without numbers and repeated paths."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = " ".join(text.split()).rstrip(".")
    return words[:200] if words else type(error).__name__


def _read_file(path: Path, name: str) -> bytes:
    """Content of an image file; what cannot be an image is refused after its first bytes."""
    try:
        if path.is_dir():
            raise SourceError(f"{name} is a folder, not an image")
        with path.open("rb") as file:
            head = file.read(SNIFF_BYTES)
            require_image(head, name)
            return head + file.read()
    except FileNotFoundError:
        raise SourceError(f"{name} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise SourceError(f"{name} cannot be read: {reason_of(error)}") from error


def require_image(head: bytes, name: str) -> None:
    """Raise SourceError unless the first bytes of a file are those of an image that can be read."""
    if not head:
        raise SourceError(f"{name} is empty")
    if sniff_format(head) is None:
        raise SourceError(f"{name} is not an image that can be read; it looks like {describe_foreign(head)}")


def require_size(
    width: int, height: int, name: str, max_pixels: int, advice: str = "cut it into tiles or raise max_pixels"
) -> None:
    """Raise SourceError where a picture has more than ``max_pixels``."""
    if width * height > max_pixels:
        raise SourceError(
            f"{name} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million; {advice}"
        )


def _decode(data: bytes, name: str, max_pixels: int, reduced: bool) -> np.ndarray:
    kind = sniff_format(data[:SNIFF_BYTES])
    image: np.ndarray | None = None
    if kind == "JPEG":
        jpeg, scan = read_jpeg_header(data, name)
        require_size(jpeg.width, jpeg.height, name, max_pixels)
        require_jpeg_end(data, scan, name)
        if jpeg.components in (1, 3) and jpeg.precision == 8:
            image = _decode_opencv(data, name, reduced=reduced)
    elif kind == "PNG":
        png = read_png_header(data, name)
        require_size(png.width, png.height, name, max_pixels)
        require_whole_png(data, name)
        image = _decode_opencv(data, name, deep=png.bit_depth == 16)
    elif kind == "WEBP":
        # Pillow's WebP decoder allocates the canvas as soon as it is opened.
        require_size(*(read_webp_size(data) or (0, 0)), name, max_pixels)
    # What OpenCV declines is left to Pillow, which reads it or gives a reason.
    return image if image is not None else _decode_pillow(data, str(kind), name, max_pixels)


def _decode_opencv(data: bytes, name: str, *, deep: bool = False, reduced: bool = False) -> np.ndarray | None:
    """RGB by OpenCV, which applies EXIF orientation and drops alpha in this mode; None when it declines.

    Args:
        data: the whole file.
        name: how errors call it.
        deep: decode 16 bits, then scale with rounding; OpenCV itself would cut off the low byte.
        reduced: decode a JPEG at an eighth of its sides.
    """
    import cv2

    flags = cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR
    flags |= cv2.IMREAD_ANYDEPTH if deep else 0
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    except MemoryError as error:
        raise SourceError(f"{name} does not fit into memory") from error
    if image is None or image.dtype not in (np.uint8, np.uint16):
        return None
    if image.dtype == np.uint16:
        image = _to_8_bits(image)
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return np.asarray(image)


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """uint16 of any shape -> uint8 of the same shape: ``round(value * 255 / 65535)``, exact for all 65,536 values."""
    table = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    scaled: np.ndarray = table[values]
    return scaled


def rgb_of_pillow(image: Image.Image, name: str = "the image") -> np.ndarray:
    """H x W x 3 uint8 RGB of an image that Pillow opened or made, upright, by the conventions of this module.

    Raises:
        SourceError: it is damaged, or holds values (float, 32-bit) that have no defined brightness.
    """
    try:
        image.load()
    except Exception as error:  # see _decode_pillow
        raise SourceError(f"{name} is damaged: {reason_of(error)}") from error
    return _pixels(_upright(image), image.format or "", name)


def _decode_pillow(data: bytes, kind: str, name: str, max_pixels: int) -> np.ndarray:
    try:
        with open_pillow(io.BytesIO(data), kind) as image:
            require_size(*image.size, name, max_pixels)
            if kind == "TIFF" and _is_better_read_by_opencv(image):
                pixels = _decode_opencv(data, name, deep=True)
                if pixels is not None:
                    return pixels
            image.load()
            upright = _upright(image)
    except SourceError:
        raise
    except Exception as error:  # on damaged input Pillow's plugins raise whatever their parsing runs into
        hint = "is cut off" if "truncated" in str(error).lower() else "is damaged or of an unsupported kind"
        raise SourceError(f"{name} {hint}: {reason_of(error)} ({kind})") from error
    return _pixels(upright, kind, name)


def open_pillow(file: BinaryIO, kind: str) -> Image.Image:
    """Open by the plugin of the format found, and only by it.

    ``Image.open`` would also try three dozen formats, some of which start other programs, and it checks the
    size against a limit of its own that is global to the process and warns at half of it.
    """
    from PIL import Image, JpegImagePlugin

    if kind == "JPEG":  # the registered opener would look for a multi-picture file and warn about odd ones
        image: Image.Image = JpegImagePlugin.JpegImageFile(file)
    else:
        Image.init()
        if kind not in Image.OPEN:
            raise OSError(f"this Pillow was built without {kind}")
        image = Image.OPEN[kind][0](file, "")
    image.info.pop("xmp", None)  # where EXIF states no orientation, Pillow would take that of XMP
    return image


def _is_better_read_by_opencv(image: Image.Image) -> bool:
    """Whether Pillow would lose something of a TIFF that has been opened but not decoded.

    Of 16-bit colour it drops the low byte; and above its own limit, which is global to the process, it warns or refuses
    when it decodes.
    """
    from PIL import Image, TiffImagePlugin

    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    if image.mode in ("RGB", "RGBA", "RGBX") and tuple(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, ()))[:3] == (16, 16, 16):
        return True
    limit = Image.MAX_IMAGE_PIXELS or MAX_PIXELS
    return image.mode in ("1", "L", "P", "RGB", "RGBA", "RGBX", "I;16") and image.width * image.height > limit


def _upright(image: Image.Image) -> Image.Image:
    """Apply EXIF orientation; a block of metadata that cannot be parsed counts as none."""
    from PIL import Image

    method = Image.Transpose
    turns = {
        2: method.FLIP_LEFT_RIGHT,
        3: method.ROTATE_180,
        4: method.FLIP_TOP_BOTTOM,
        5: method.TRANSPOSE,
        6: method.ROTATE_270,
        7: method.TRANSVERSE,
        8: method.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # see _decode_pillow; the picture itself is fine
        orientation = 1
    return image.transpose(turns[orientation]) if orientation in turns else image.copy()


def _pixels(image: Image.Image, kind: str, name: str) -> np.ndarray:
    """Pixels of a loaded Pillow image as H x W x 3 uint8 RGB."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _grey_to_rgb(_to_8_bits(np.array(image).astype(np.uint16)))
    if mode == "I" and kind in _DEEP_IN_32:
        return _grey_to_rgb(_to_8_bits(np.array(image).clip(0, 65535).astype(np.uint16)))
    require_white_point(mode, kind, name)
    if mode in ("P", "PA", "RGBa", "La"):
        # A palette may carry transparency, and premultiplied colours have to be divided: both go over RGBA.
        image = image.convert("RGBA")
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise SourceError(f"{name} is stored as {mode}, which cannot be converted to RGB; save it as RGB") from error


def require_white_point(mode: str, kind: str, name: str) -> None:
    """Raise SourceError where Pillow's ``mode`` holds values that have no defined brightness."""
    if mode == "F" or (mode == "I" and kind not in _DEEP_IN_32):
        values = "floating-point" if mode == "F" else "32-bit or signed integer"
        raise SourceError(
            f"{name} holds {values} values, whose white point is unknown; convert it to 8 or 16 bits per channel"
        )


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """H x W -> H x W x 3, contiguous."""
    return np.repeat(grey[:, :, None], 3, axis=2)
