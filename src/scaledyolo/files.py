"""Where files go, and writing them so that nothing is lost: whole or not at all, one sentence where it fails."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from scaledyolo.errors import OutputError


def cache_folder(kind: str) -> Path:
    """Where files of a kind (``weights``, ``compiled``, ``images``) are kept: ``$SCALEDYOLO_HOME/kind``, else below the
    user's cache folder."""
    home = os.environ.get("SCALEDYOLO_HOME")
    if home:
        return Path(home).expanduser() / kind
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "scaledyolo" / kind


@contextlib.contextmanager
def output_errors(path: Path, reassurance: str = "") -> Iterator[None]:
    """Turn an OSError into an OutputError that names the file and the reason, and ends with ``reassurance``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise OutputError(f"{path} cannot be written: {reason}{reassurance}") from error


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A new empty file beside ``path`` that replaces it when the block ends well and vanishes when it does not.

    ``durable``: whether the content is on the disk before the old file goes; a power cut then loses neither.

    Raises:
        OutputError: the file system refused (disk full, no permission, no folder); an existing file is unchanged.
    """
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.part")
    with output_errors(path, "; nothing was changed"):
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
