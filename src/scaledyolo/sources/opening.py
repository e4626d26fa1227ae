"""What an argument of the command line means: file, folder, pattern, list, video, camera or stream."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from scaledyolo.errors import SourceError, nearest
from scaledyolo.images import MAX_PIXELS, printable, reason_of
from scaledyolo.sources.files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Entry,
    FileSource,
    is_single_image,
    list_folder,
    list_lines,
    list_pattern,
)
from scaledyolo.sources.frame import FrameSource
from scaledyolo.sources.live import LiveStream, Reconnect
from scaledyolo.sources.remote import is_url, relative_of_url, require_known_scheme, url_suffix
from scaledyolo.sources.video import VideoFile

_CAMERA_DEVICE = re.compile(r"/dev/video([0-9]+)")


def open_source(
    source: str | os.PathLike[str] | int,
    *,
    recursive: bool = True,
    max_pixels: int = MAX_PIXELS,
    reconnect: Reconnect | None = None,
) -> FrameSource:
    """Find out what ``source`` means and make it a source of frames.

    In this order: ``-`` is a list of paths on standard input; ``scheme://`` a URL (an image or video by its suffix,
    otherwise a live stream); an existing path is a folder, a list (``.txt``), an image or a video; a number
    is a camera; ``*``, ``?`` and ``[`` make a pattern.

    Args:
        source: the argument.
        recursive: whether a folder includes its subfolders.
        max_pixels: refuse larger images and pictures of videos and streams; cameras give what they were made for.
        reconnect: whether and how live streams are opened again; by default they are not.

    Raises:
        SourceError: there is no such thing (with the nearest existing name), or it holds nothing to read.
    """
    if isinstance(source, int):
        return LiveStream.from_camera(source, reconnect=reconnect)
    text = os.fspath(source)
    if not text:
        raise SourceError("the source is an empty text; name a file, folder, pattern, URL or camera number")
    if text == "-":
        entries = list_lines(sys.stdin.buffer.read(), name="standard input", folder=None)
        return FileSource(entries, max_pixels=max_pixels)
    if is_url(text) and not text.lower().startswith("file://"):
        return _open_url(text, max_pixels, reconnect)
    path = Path(unquote(urlsplit(text).path)) if is_url(text) else Path(text)
    camera = _CAMERA_DEVICE.fullmatch(text)
    if camera:
        return LiveStream.from_camera(int(camera[1]), reconnect=reconnect)
    if _exists(path):
        return _open_path(path, recursive=recursive, max_pixels=max_pixels)
    if text.isascii() and text.isdigit():
        return LiveStream.from_camera(int(text), reconnect=reconnect)
    if any(character in text for character in "*?["):
        return FileSource(list_pattern(text), max_pixels=max_pixels)
    raise _missing(path)


def open_sources(sources: Sequence[str], *, recursive: bool = True) -> list[FrameSource]:
    """Several arguments as few sources: what is files, in whatever way it was named, goes into one, in order.

    A broken image among several arguments is then a frame with an error, as it is in a folder; see :func:`open_source`
    for what is raised.
    """
    opened: list[FrameSource] = []
    for number, source in enumerate(sources):
        one = open_source(source, recursive=recursive)
        last = opened[-1] if number else None
        if isinstance(one, FileSource) and isinstance(last, FileSource):
            opened[-1] = FileSource((*last.entries, *one.entries), max_pixels=one.max_pixels)
        else:
            opened.append(one)
    return opened


def _open_url(url: str, max_pixels: int, reconnect: Reconnect | None) -> FrameSource:
    require_known_scheme(url)
    web = url.lower().startswith(("http://", "https://"))
    if web and url_suffix(url) in IMAGE_SUFFIXES:
        return FileSource([Entry(url, relative_of_url(url))], kind="image", max_pixels=max_pixels)
    if web and url_suffix(url) in VIDEO_SUFFIXES - {".mjpg", ".mjpeg"}:  # these two are what web cameras end in
        return VideoFile(url, max_pixels=max_pixels)
    return LiveStream.from_url(url, reconnect=reconnect, max_pixels=max_pixels)


def _open_path(path: Path, *, recursive: bool, max_pixels: int) -> FrameSource:
    if path.is_dir():
        return FileSource(list_folder(path, recursive=recursive), max_pixels=max_pixels)
    if path.suffix.lower() == ".txt":
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{printable(path)} cannot be read: {reason_of(error)}") from error
        return FileSource(list_lines(content, name=printable(path), folder=path.parent), max_pixels=max_pixels)
    if is_single_image(path):
        return FileSource([Entry(os.fspath(path), PurePosixPath(path.name))], kind="image", max_pixels=max_pixels)
    return VideoFile(path, max_pixels=max_pixels)


def _exists(path: Path) -> bool:
    """Whether something has this name, a link that leads nowhere included; False for impossible names."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _missing(path: Path) -> SourceError:
    """The error for a path that does not exist, with the nearest name in the deepest folder that does."""
    missing, folder = path, path.parent
    while not _exists(folder) and folder != folder.parent:
        missing, folder = folder, folder.parent
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        names = []
    what = "" if missing == path else f": there is no {printable(missing)}"
    return SourceError(f"{printable(path)} does not exist{what}.{nearest(missing.name, names)}")
