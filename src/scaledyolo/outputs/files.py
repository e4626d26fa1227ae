"""Files that are whole or absent: run folders, atomic files, files that grow by complete records, and safe names."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path, PurePosixPath

from scaledyolo.errors import OutputError
from scaledyolo.files import atomic_file, output_errors

# Names that Windows reserves for devices, with or without a suffix.
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))})
_MAX_NAME_BYTES = 200  # file systems allow 255; suffixes and temporary names need room
_MAX_RUNS = 100_000


def create_run_folder(parent: Path, name: str = "detect") -> Path:
    """Create ``parent/name``, or the first of ``name-2``, ``name-3``, ... that does not exist, and return it.

    Two runs that start at the same time get two folders, because ``mkdir`` succeeds for only one of them.

    Raises:
        OutputError: the folder cannot be created.
    """
    with output_errors(parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, _MAX_RUNS):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise OutputError(f"{parent} holds {_MAX_RUNS} runs called {name}; choose another folder")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there completely or not at all; folders are created.

    Raises:
        OutputError: disk full, no permission, ... An existing file of that name is then unchanged.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not durable: a run writes thousands of small files, and waiting for the disk after each would halve its speed.
    with atomic_file(path, durable=False) as temporary:
        temporary.write_bytes(content)


class GrowingFile:
    """A file that ends with a complete record at every moment, so that a killed run keeps what it had written.

    Every record is handed to the operating system by one unbuffered write. When that fails halfway (disk
    full), the file is cut back to the last complete record. ``tail`` closes the document (``]`` of a JSON
    array); the next record overwrites it and writes it again behind itself.
    """

    def __init__(self, path: Path, *, head: bytes = b"", tail: bytes = b"") -> None:
        """Create the file, which must not exist, with head and tail; raises OutputError."""
        self.path = path
        self._tail = tail
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb", buffering=0)
        self._end = 0  # where the next record goes: before the tail
        try:
            self.append(head)
        except OutputError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def append(self, record: bytes) -> None:
        """Add one record; raises OutputError and leaves the file as it was before."""
        with output_errors(self.path):
            try:
                self._write_all(self._end, record + self._tail)
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._end)
                    self._write_all(self._end, self._tail)
                raise
        self._end += len(record)

    def close(self) -> None:
        """Close; the file needs nothing more."""
        self._file.close()

    def _write_all(self, position: int, content: bytes) -> None:
        """A raw file may write less than it is given when space runs out; the next attempt then says why."""
        self._file.seek(position)
        view = memoryview(content)
        while view:
            written = self._file.write(view)
            view = view[written or 0 :]


def safe_name(text: str) -> str:
    """A name that every file system takes for one file: no separators, control characters, reserved or hidden names.

    >>> safe_name("traffic/light: red?")
    'traffic_light_ red_'
    """
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]|[\ud800-\udfff]', "_", text).rstrip(". ").lstrip(" ")
    if name.startswith((".", "-")):  # hidden, or an option to the next command
        name = "_" + name[1:]
    if name.split(".")[0].lower() in _RESERVED or not name:
        name = f"_{name}"
    while len(name.encode()) > _MAX_NAME_BYTES:
        name = name[:-1]
    return name


class OutputNames:
    """Gives every source a place below the output folder that no other source of the run has."""

    def __init__(self) -> None:
        self._place_of: dict[tuple[str, PurePosixPath], PurePosixPath] = {}
        self._taken: set[str] = set()

    def place(self, source: str, relative: PurePosixPath, *, keep_suffix: bool = False) -> PurePosixPath:
        """The source's path below the opened folder, made safe, and without suffix unless ``keep_suffix``.

        Videos keep it: the frames of ``clip.mp4`` then cannot be taken for images in a folder ``clip``.

        When another source has it already (``a.jpg`` and ``a.png``, or names that differ only in case), the
        suffix stays (``a.png``), and after that numbers follow. Asking again for the same source gives the
        same place.
        """
        known = self._place_of.get((source, relative))
        if known is not None:
            return known
        steps = [safe_name(step) for step in relative.parts if step not in ("/", "..", ".")] or ["frame"]
        full = PurePosixPath(*steps)
        place = full if keep_suffix else full.with_suffix("")
        number = 1
        while str(place).casefold() in self._taken:
            place = full if number == 1 else full.with_name(f"{full.name}-{number}")
            number += 1
        self._taken.add(str(place).casefold())
        self._place_of[source, relative] = place
        return place
