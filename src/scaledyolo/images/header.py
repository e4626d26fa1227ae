"""What the first bytes of an image file say, read without decoding: format, size, and whether the file is whole.

Sizes are needed before decoding, because a file of a few kilobytes may ask for gigabytes of pixels. Whether
the file is whole is checked here because decoders disagree: depending on its version OpenCV returns the
missing part of a JPEG as grey, and Pillow accepts a PNG without its end.

Sources: ITU-T T.81 annex B (JPEG markers), PNG specification (3rd ed.) sections 5 and 11, RFC 9649 (WebP).
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO, NamedTuple

from scaledyolo.errors import SourceError

# Enough bytes to recognise every format below.
SNIFF_BYTES = 64

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (_PNG_SIGNATURE, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"#?RADIANCE", "a floating-point HDR image"),
    (b"v/1\x01", "a floating-point OpenEXR image"),
    (b"PK\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a Git LFS pointer; run 'git lfs pull'"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
# Start-of-frame markers: C0 to CF without DHT (C4), JPG (C8) and DAC (CC). T.81 table B.1.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_PNG_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


class JpegHeader(NamedTuple):
    """Start of frame: size in stored orientation, components (1 grey, 3 colour, 4 CMYK), bits per sample."""

    width: int
    height: int
    components: int
    precision: int


class PngHeader(NamedTuple):
    """IHDR: size, bits per sample, colour type (0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA)."""

    width: int
    height: int
    bit_depth: int
    color_type: int


def sniff_format(head: bytes) -> str | None:
    """Name of the image format that the first ``SNIFF_BYTES`` bytes show (Pillow's names), or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "AVIF"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    return None


def describe_foreign(head: bytes) -> str:
    """What a file that is no image seems to be, as words that follow "it looks like"."""
    for magic, words in _FOREIGN:
        if head.lstrip().lower().startswith(magic.lower()):
            return words
    if head[4:8] == b"ftyp":
        return "a HEIC photograph; convert it to JPEG" if head[8:12] in _HEIF_BRANDS else "a video"
    if not head.strip(b"\x00"):
        return "a file of zeros"
    try:
        # The end of the excerpt may cut a character in two, so only its beginning has to be text.
        head[: max(1, len(head) - 3)].decode("utf-8")
    except UnicodeDecodeError:
        return "binary data of another kind"
    return "text"


def read_jpeg_header(data: bytes, name: str) -> tuple[JpegHeader, int]:
    """Header of a JPEG, and the offset of its first scan.

    Args:
        data: the whole file.
        name: how messages call it.

    Raises:
        SourceError: when the file ends before its first scan or has no frame header.
    """
    header: JpegHeader | None = None
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF or data[position + 1] in (0x00, 0xFF):
            position += 1  # fill bytes, or garbage between segments that every decoder skips
            continue
        marker = data[position + 1]
        if marker in _JPEG_STANDALONE:
            position += 2
            continue
        if marker == 0xD9:
            break
        if marker == 0xDA and header is not None:
            return header, position
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _JPEG_FRAMES and position + 10 <= len(data):
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            header = JpegHeader(width, height, components, precision)
        position += 2 + max(length, 2)
    raise SourceError(f"{name} is cut off: the JPEG ends before its picture begins; copy or download it again")


def require_jpeg_end(data: bytes, scan: int, name: str) -> None:
    """Raise SourceError when no end-of-image marker follows the first scan.

    Inside entropy-coded data a 0xFF is always followed by 0x00 or a restart marker (T.81 B.1.1.5), so the
    marker cannot appear by chance; searching from the back finds it at once in a whole file and steps over
    data that cameras append.
    """
    if data.rfind(b"\xff\xd9", scan) < 0:
        raise SourceError(f"{name} is cut off: the JPEG has no end marker; copy or download it again")


def read_png_header(data: bytes, name: str) -> PngHeader:
    """IHDR of a PNG; raises SourceError when it is missing."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise SourceError(f"{name} is cut off: the PNG ends inside its header; copy or download it again")
    width, height, bit_depth, color_type = struct.unpack_from(">IIBB", data, 16)
    return PngHeader(width, height, bit_depth, color_type)


def require_whole_png(data: bytes, name: str) -> None:
    """Raise SourceError when the chain of chunks is cut, or a checksum of a chunk that matters is wrong."""
    view = memoryview(data)
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 12 + length
        kind = bytes(view[position + 4 : position + 8])
        if end > len(data):
            break
        if kind in _PNG_CRITICAL:
            stored = int.from_bytes(view[end - 4 : end], "big")
            if zlib.crc32(view[position + 4 : end - 4]) != stored:
                raise SourceError(f"{name} is damaged: the checksum of its {kind.decode()} chunk is wrong")
        if kind == b"IEND":
            return
        position = end
    raise SourceError(f"{name} is cut off: the PNG has no end chunk; copy or download it again")


def read_png_exif(file: BinaryIO) -> bytes:
    """The EXIF block of an open PNG, wherever it stands in the file; empty where there is none."""
    file.seek(len(_PNG_SIGNATURE))
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"eXIf":
            return file.read(length)
        file.seek(length + 4, os.SEEK_CUR)
    return b""


def read_webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP canvas, or None when the header is not understood (the decoder will complain)."""
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
