"""Fetches published weights by name into a cache: only when asked, resumed after a break, verified before use.

Layout of the cache folder: the files themselves; ``checksums.json`` with what was first received of files whose
publisher gives no checksum; ``*.part`` while a download runs or waits to be resumed; ``.*.lock`` so that processes
take turns.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scaledyolo.errors import DownloadError
from scaledyolo.files import atomic_file, cache_folder
from scaledyolo.transfer import Partial, Progress, TransferError, transfer
from scaledyolo.weights_registry import WeightsEntry, find_weights, weights_registry

KIND = "weights"  # of the files that are kept in the cache, see scaledyolo.files.cache_folder
CHECKSUM_RECORD = "checksums.json"
_ALGORITHMS = frozenset(("sha256", "sha512", "sha384", "sha1", "md5"))
_WEB_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")
_BLOCK_BYTES = 2**20


def is_downloaded(name: str) -> bool:
    """Whether weights of that name lie in the cache, complete; False for a name that nobody publishes."""
    entry = weights_registry().get(name)
    return entry is not None and (cache_folder(KIND) / entry.file).is_file()


def fetch(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    allow_download: bool = True,
    registry: Mapping[str, WeightsEntry] | None = None,
) -> Path:
    """Return the path of the weights of that name, downloaded if they are not in the cache, verified in any case.

    Arguments:
        name: key of the registry, such as ``"yolov4-tiny"``.
        folder: where files are kept; by default the cache.
        progress: called with (bytes there, bytes in total or None) while a download runs.
        allow_download: without it nothing is fetched and only what is in the cache is returned.
        registry: other entries than those that come with the package.

    Raises UsageError for an unknown name, DownloadError if the file cannot be had or is not what was promised. What was
    in the cache before a failed download is still there after it.
    """
    entry = find_weights(name, registry)
    folder = Path(folder) if folder is not None else cache_folder(KIND)
    target = folder / entry.file
    if not allow_download and not target.is_file():
        raise DownloadError(
            f"The weights {name} are not in {folder}; run `scaledyolo download {name}` or allow the download."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder / f".{entry.file}.lock"):
            return _fetch(entry, target, progress, allow_download)
    except OSError as error:
        raise DownloadError(f"{error.filename or folder} cannot be used: {error.strerror or error}.") from error


def _fetch(entry: WeightsEntry, target: Path, progress: Progress | None, allow_download: bool) -> Path:
    if target.is_file():
        problem = _verify(entry, target, target.name)
        if problem is None:
            return target
        if not allow_download or not entry.urls:
            raise DownloadError(f"{target} is not what was promised: {problem}; move it away and fetch it again.")
    if not entry.urls:
        place = f"open {entry.page} in a browser, save the file as" if entry.page else "put a copy at"
        raise DownloadError(f"The weights {entry.name} cannot be fetched directly: {place} {target} and ask again.")
    partial = Partial(target.with_name(f"{target.name}.part"))
    _check_space(entry, partial)
    problems: list[str] = []
    for url in entry.urls:
        problem = _fetch_from(url, entry, target, partial, progress)
        if problem is None:
            return target
        problems.append(f"{url}: {problem}")
    raise DownloadError(f"The weights {entry.name} could not be downloaded ({'; '.join(problems)}).")


def _fetch_from(url: str, entry: WeightsEntry, target: Path, partial: Partial, progress: Progress | None) -> str | None:
    """Try one address; returns None when ``target`` is in place, else what was wrong."""
    has_checksum = entry.checksum is not None or _recorded(target) is not None
    for resumed in (partial.is_from(url) and partial.size > 0, False):
        try:
            transfer(url, partial, expected_bytes=entry.bytes, may_resume=has_checksum, progress=progress)
        except TransferError as error:
            return str(error)
        problem = _verify(entry, partial.path, target.name)
        if problem is None:
            os.replace(partial.path, target)
            partial.discard()
            return None
        partial.discard()
        if not resumed:
            return problem
    return problem


def _check_space(entry: WeightsEntry, partial: Partial) -> None:
    needed = (entry.expected_bytes or 0) - partial.size
    folder = partial.path.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"The weights {entry.name} need {needed / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are free."
        )


# Verification


def _verify(entry: WeightsEntry, path: Path, file: str) -> str | None:
    """Compare size and checksum of ``path`` with what is known of ``file``; returns what is wrong, or None.

    Where no checksum is published, the first one seen is recorded beside the file and holds from then on.
    """
    size = path.stat().st_size
    if not entry.accepts_size(size):
        return f"it has {size} bytes where {entry.expected_bytes} were expected"
    with path.open("rb") as opened:
        if opened.read(64).lstrip().lower().startswith(_WEB_PAGE_STARTS):
            return "it is a web page and no weights"
    if entry.checksum is not None:
        return _compare(path, entry.checksum, "the publisher's")
    recorded = _recorded(path.with_name(file))
    if recorded is not None:
        return _compare(path, recorded, f"that of the first download in {CHECKSUM_RECORD}")
    _record(path.with_name(file), f"sha256:{_digest(path, 'sha256')}", size)
    return None


def _compare(path: Path, checksum: str, whose: str) -> str | None:
    algorithm, _, expected = checksum.partition(":")
    if algorithm not in _ALGORITHMS:
        raise DownloadError(f"The checksum {checksum[:60]!r} is of an unknown kind; known are {sorted(_ALGORITHMS)}.")
    found = _digest(path, algorithm)
    if found == expected.lower():
        return None
    return f"its {algorithm} is {found[:16]}... but {whose} is {expected[:16]}..."


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# The record of first downloads


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DownloadError(f"{path} is damaged; delete it if the weights beside it are to be trusted anew.") from error
    if not isinstance(content, dict):
        raise DownloadError(f"{path} is damaged; delete it if the weights beside it are to be trusted anew.")
    return content


def _recorded(target: Path) -> str | None:
    found = _read_record(target.with_name(CHECKSUM_RECORD)).get(target.name)
    checksum = found.get("checksum") if isinstance(found, dict) else None
    return checksum if isinstance(checksum, str) else None


def _record(target: Path, checksum: str, size: int) -> None:
    path = target.with_name(CHECKSUM_RECORD)
    with _turn(path.with_name(f".{path.name}.lock")):
        content = {**_read_record(path), target.name: {"checksum": checksum, "bytes": size}}
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the lock file: one thread of one process at a time; the system releases it when its holder dies."""
    with path.open("a+b") as opened:
        if os.name == "nt":
            import msvcrt

            while True:  # each call gives up after ten seconds, a download may take longer
                with contextlib.suppress(OSError):
                    msvcrt.locking(opened.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
                    break
        else:
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
