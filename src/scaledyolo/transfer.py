"""Moves one file over http(s) into a partial file: resumes, retries, and never follows anything but http(s).

The partial file ``x.part`` has a small record ``x.part.json`` beside it that says which address it comes from and
which validator (ETag or Last-Modified) the server gave; with it the server decides whether bytes may be appended
later (RFC 9110, section 13.1.5, If-Range).
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from scaledyolo import __version__
from scaledyolo.errors import DownloadError

Progress = Callable[[int, "int | None"], None]

# Some hosts answer the default agent of Python with 403.
USER_AGENT = f"scaledyolo/{__version__} (Python urllib)"
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 5
BACKOFF_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
CHUNK_BYTES = 256 * 1024
# No weights of the family are larger; a server that keeps sending is cut off.
MAX_BYTES = 4 * 2**30
_TRANSIENT_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))


class TransferError(Exception):
    """One address did not give the file; the text is a phrase such as ``"the server answered 404 Not Found"``."""


class _TransientError(TransferError):
    """Worth another attempt, not before ``wait`` seconds if the server said so."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Partial:
    """The partial file of one download."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes that are there; 0 without a file."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def _record(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def validator(self, url: str) -> str | None:
        """Validator that the bytes there were sent with, if they come from ``url``."""
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if isinstance(record, dict) and record.get("url") == url and isinstance(record.get("validator"), str):
                return record["validator"] or None
        return None

    def is_from(self, url: str) -> bool:
        """Whether the bytes there come from ``url``."""
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
            return isinstance(record, dict) and record.get("url") == url
        return False

    def restart(self, url: str, validator: str | None) -> None:
        """Forget the bytes and remember where the next ones come from."""
        self.path.unlink(missing_ok=True)
        self._record.write_text(json.dumps({"url": url, "validator": validator or ""}), encoding="utf-8")

    def discard(self) -> None:
        """Remove everything."""
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)


class _WebOnlyRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and never from https back to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme.lower()
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise TransferError(f"the server redirects from {req.type} to {scheme or 'nowhere'}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows http and https only: no files, no ftp, no data URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _WebOnlyRedirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", USER_AGENT)]
    return opener


def transfer(
    url: str, partial: Partial, *, expected_bytes: int | None, may_resume: bool, progress: Progress | None = None
) -> None:
    """Fetch ``url`` into ``partial``, with further attempts after transient failures.

    Arguments:
        expected_bytes: published size; what is longer is refused while it arrives, what is shorter afterwards.
        may_resume: whether bytes may be appended even where the server gave no validator, because a checksum follows.
        progress: called with (bytes there, bytes in total or None).

    Raises TransferError if this address does not give the file, DownloadError if the disk is full.
    """
    if urllib.parse.urlsplit(url).scheme.lower() not in ("http", "https"):
        raise TransferError("only http and https addresses are fetched")
    opener = _opener()
    for attempt in range(ATTEMPTS):
        try:
            _attempt(opener, url, partial, expected_bytes, may_resume, progress)
            return
        except _TransientError as error:
            if attempt + 1 == ATTEMPTS:
                raise TransferError(f"{error} ({ATTEMPTS} attempts)") from error
            wait = BACKOFF_SECONDS * 2**attempt if error.wait is None else error.wait
            time.sleep(min(wait, LONGEST_WAIT_SECONDS))


def _attempt(
    opener: urllib.request.OpenerDirector,
    url: str,
    partial: Partial,
    expected_bytes: int | None,
    may_resume: bool,
    progress: Progress | None,
) -> None:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    start = _resume_point(url, partial, expected_bytes, may_resume)
    if start:
        request.add_header("Range", f"bytes={start}-")
        validator = partial.validator(url)
        if validator:
            request.add_header("If-Range", validator)
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            _receive(response, url, partial, start, expected_bytes, progress)
    except urllib.error.HTTPError as error:
        _refuse_status(error, partial)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError | socket.gaierror):
            raise TransferError(f"no connection ({error.reason})") from error
        raise _TransientError(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, OSError) as error:
        raise _TransientError(f"the connection broke ({type(error).__name__})") from error


@contextlib.contextmanager
def _disk(partial: Partial) -> Iterator[None]:
    """Turn trouble with the disk into DownloadError, apart from trouble with the connection, which is OSError too."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DownloadError(
                f"There is no space left in {partial.path.parent}; free some and ask again, the download will resume."
            ) from error
        raise DownloadError(f"{partial.path} cannot be written: {error.strerror or error}.") from error


def _resume_point(url: str, partial: Partial, expected_bytes: int | None, may_resume: bool) -> int:
    size = partial.size
    usable = partial.is_from(url) and (may_resume or partial.validator(url) is not None)
    if not usable or (expected_bytes is not None and size >= expected_bytes):
        return 0
    return size


def _refuse_status(error: urllib.error.HTTPError, partial: Partial) -> None:
    error.close()
    message = " ".join(f"the server answered {error.code} {error.reason}".split())
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        partial.discard()
        raise _TransientError(message, 0.0) from error
    if error.code in _TRANSIENT_STATUS:
        after = (error.headers.get("Retry-After") or "") if error.headers else ""
        raise _TransientError(message, float(after) if after.isdecimal() else None) from error
    raise TransferError(message) from error


def _receive(
    response: Any, url: str, partial: Partial, start: int, expected_bytes: int | None, progress: Progress | None
) -> None:
    headers: Message = response.headers
    if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise TransferError("the server sent a web page instead of weights")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise TransferError(f"the server sent {headers['Content-Encoding']} data, which was not asked for")
    start = _continue_at(response, headers, start, partial)
    length = headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    limit = expected_bytes if expected_bytes is not None else MAX_BYTES
    if total is not None and (total > limit or (expected_bytes is not None and total != expected_bytes)):
        raise TransferError(f"the server offers {total} bytes where {limit} were expected")
    if not start:
        with _disk(partial):
            partial.restart(url, _validator(headers))
    done = _copy(response, partial, start, total or expected_bytes, limit, progress)
    if total is not None and done < total:
        raise _TransientError(f"the connection ended after {done} of {total} bytes")


def _continue_at(response: Any, headers: Message, start: int, partial: Partial) -> int:
    """Where the bytes that follow belong: a server may ignore a range and send everything."""
    if not start or response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    if not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        partial.discard()
        raise _TransientError("the server continued at another place than asked", 0.0)
    return start


def _validator(headers: Message) -> str | None:
    """A strong ETag, or the date of the last change; a weak ETag must not be used with a range."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _copy(response: Any, partial: Partial, done: int, total: int | None, limit: int, progress: Progress | None) -> int:
    with _opened(partial) as out:
        while chunk := response.read(CHUNK_BYTES):
            done += len(chunk)
            if done > limit:
                raise TransferError(f"the server sent more than the {limit} bytes expected")
            rest = memoryview(chunk)
            with _disk(partial):
                while rest:
                    rest = rest[out.write(rest) :]
            if progress is not None:
                progress(done, total)
        with _disk(partial):
            os.fsync(out.fileno())
    return done


def _opened(partial: Partial) -> IO[bytes]:
    """The partial file, to be appended to; unbuffered, so that a full disk shows where bytes are written."""
    with _disk(partial):
        return partial.path.open("ab", buffering=0)
