"""Many files as one source: folders, patterns and lists, in an order that is the same everywhere.

The order is natural (``img2`` before ``img10``), folder by folder. Hidden files are skipped; loops of
symbolic links are entered once. A file that cannot be read becomes a frame with an error, so that one bad
image does not end a run.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import numpy as np

from scaledyolo.errors import SourceError
from scaledyolo.images import MAX_PIXELS, SNIFF_BYTES, printable, read_image, reason_of, sniff_format
from scaledyolo.sources.frame import BaseSource, Frame, Load, SourceKind, made
from scaledyolo.sources.remote import (
    fetch,
    is_url,
    relative_of_url,
    require_known_scheme,
    url_suffix,
    without_password,
)
from scaledyolo.sources.video import VideoFile

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in "jpg jpeg jpe jfif png bmp dib webp tif tiff gif ppm pgm pbm pnm jp2 avif".split()  # noqa: SIM905
)
VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in "mp4 m4v mov avi mkv webm mpg mpeg wmv flv ts mts m2ts 3gp ogv mjpeg mjpg asf vob".split()  # noqa: SIM905
)


class Entry(NamedTuple):
    """One file or URL to read."""

    source: str
    relative: PurePosixPath
    problem: SourceError | None = None  # known already when listing: a folder that must not be entered


class FileSource(BaseSource):
    """Frames of many image and video files."""

    def __init__(self, entries: Iterable[Entry], *, kind: SourceKind = "files", max_pixels: int = MAX_PIXELS) -> None:
        self.entries = tuple(entries)
        self.kind: SourceKind = kind
        self.max_pixels = max_pixels

    @property
    def num_frames(self) -> int | None:
        """Number of files, or None when a video is among them."""
        if any(_suffix(entry.source) in VIDEO_SUFFIXES for entry in self.entries):
            return None
        return len(self.entries)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames of every file in order; a single image that is broken raises SourceError."""
        for load in self.loads():
            yield load()

    def loads(self) -> Iterator[Load]:
        """One call for each image, which reads it; the frames of videos."""
        for entry in self.entries:
            if not _holds_video(entry):
                yield partial(self._image, entry)
                continue
            try:
                if is_url(entry.source):
                    require_known_scheme(entry.source)
                for frame in VideoFile(entry.source, relative=entry.relative, max_pixels=self.max_pixels):
                    yield made(frame)
            except SourceError as error:
                yield made(_unreadable(entry, error))

    def _image(self, entry: Entry) -> Frame:
        try:
            image = self._read(entry)
        except SourceError as error:
            if self.kind == "image":
                raise
            return _unreadable(entry, error)
        return Frame(image=image, source=without_password(entry.source), relative=entry.relative)

    def _read(self, entry: Entry) -> np.ndarray:
        if entry.problem is not None:
            raise entry.problem
        if not is_url(entry.source):
            return read_image(entry.source, max_pixels=self.max_pixels)
        url, name = entry.source, without_password(entry.source)
        require_known_scheme(url)
        if not url.lower().startswith(("http://", "https://")):
            raise SourceError(f"{name} is a live stream, which never ends; open it by itself instead of in a list")
        return read_image(fetch(url), max_pixels=self.max_pixels, name=name)


def _unreadable(entry: Entry, error: SourceError) -> Frame:
    return Frame(image=None, source=without_password(entry.source), relative=entry.relative, error=error)


def _holds_video(entry: Entry) -> bool:
    """Whether to read an entry as a video: a local one by suffix or first bytes, one of the web by its suffix."""
    if entry.problem is not None:
        return False
    if is_url(entry.source):
        return url_suffix(entry.source) in VIDEO_SUFFIXES
    return _is_video(Path(entry.source))


def _suffix(source: str) -> str:
    return url_suffix(source) if is_url(source) else PurePath(source).suffix.lower()


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key under which numbers inside names count as numbers; the text itself breaks ties.

    >>> sorted(["b10", "B2", "b1"], key=natural_key)
    ['b1', 'B2', 'b10']
    """
    parts = re.split(r"([0-9]+)", text.casefold())
    return tuple((0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)), text


def is_single_image(path: Path) -> bool:
    """Whether a file is to be read as an image: by its suffix, else by its first bytes."""
    return not _is_video(path)


def _is_video(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return False
    if suffix in VIDEO_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(SNIFF_BYTES)
    except (OSError, ValueError):
        return False  # read_image gives the reason
    looks_like_video = head[4:8] == b"ftyp" or head[:4] in (b"RIFF", b"\x1a\x45\xdf\xa3", b"OggS", b"FLV\x01")
    return sniff_format(head) is None and looks_like_video


def list_folder(folder: Path, *, recursive: bool = True) -> list[Entry]:
    """Images and videos in a folder, by suffix; a subfolder that may not be read is an entry with a problem.

    Raises:
        SourceError: the folder itself cannot be read, or holds neither images nor videos.
    """
    entries: list[Entry] = []
    _walk(folder, PurePosixPath(), entries, recursive=recursive, visited=set())
    if not entries:
        depth = "in it or below" if recursive else "directly in it"
        raise SourceError(f"the folder {printable(folder)} has no images or videos {depth}")
    if len(entries) == 1 and entries[0].problem is not None:
        raise entries[0].problem
    return entries


def _walk(
    folder: Path, below: PurePosixPath, entries: list[Entry], *, recursive: bool, visited: set[tuple[int, int]]
) -> None:
    """Append the entries of one folder, then those of its subfolders; ``visited`` stops loops of links."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as scan:
            children = sorted(scan, key=lambda child: natural_key(child.name))
    except OSError as error:
        problem = SourceError(f"the folder {printable(folder)} cannot be read: {reason_of(error)}")
        entries.append(Entry(os.fspath(folder), below / folder.name, problem))
        return
    folders: list[Path] = []
    for child in children:
        if child.name.startswith("."):
            continue
        if child.is_dir():
            folders.append(folder / child.name)
        elif PurePath(child.name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and _is_file_or_broken_link(child):
            entries.append(Entry(os.fspath(folder / child.name), below / child.name))
    for path in folders if recursive else ():
        _walk(path, below / path.name, entries, recursive=True, visited=visited)


def _is_file_or_broken_link(child: os.DirEntry[str]) -> bool:
    """Pipes and devices are left alone: reading them may never end. A broken link is reported when read."""
    return child.is_file() or (child.is_symlink() and not os.path.exists(child.path))


def list_pattern(pattern: str) -> list[Entry]:
    """Files that a pattern with ``*``, ``?``, ``[...]`` or ``**`` matches; raises SourceError when there are none."""
    matches = [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]
    if not matches:
        raise SourceError(f"no file matches the pattern {printable(pattern)}")
    return _with_relatives(sorted(matches, key=natural_key))


def list_lines(content: bytes, *, name: str, folder: Path | None) -> list[Entry]:
    """Entries of a list: one path or URL a line; empty lines and lines that start with ``#`` are skipped.

    Args:
        content: the list, UTF-8; separated by null bytes (``find -print0``) if it has any, else by line ends.
        name: how errors call the list.
        folder: folder of the list; relative paths are looked up there first, then in the working folder.

    Raises:
        SourceError: the list names nothing.
    """
    text = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf"))
    lines = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    sources = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not sources:
        raise SourceError(f"{name} names no image or video")
    return _with_relatives([_resolve(source, folder) for source in sources])


def _resolve(line: str, folder: Path | None) -> str:
    """The path that a line of a list means; spaces around it count only when such a file exists."""
    if is_url(line.strip()):
        return line.strip()
    spellings = (line, line.strip())
    places = [Path(spelling) for spelling in spellings]
    if folder is not None:
        places = [folder / spelling for spelling in spellings] + places
    for place in places:
        if place.exists():
            return os.fspath(place)
    return os.fspath(places[1])


def _with_relatives(sources: list[str]) -> list[Entry]:
    """Entries whose ``relative`` starts below the deepest folder common to all local files."""
    local = [os.path.abspath(source) for source in sources if not is_url(source)]
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in local]) if local else ""
    except ValueError:  # different drives of Windows have nothing in common
        root = ""
    entries: list[Entry] = []
    for source in sources:
        if is_url(source):
            entries.append(Entry(source, relative_of_url(source)))
            continue
        path = Path(os.path.abspath(source))
        relative = path.relative_to(root) if root else path.relative_to(path.anchor)
        entries.append(Entry(source, PurePosixPath(*relative.parts)))
    return entries
