"""URLs: which ones are understood, what they stand for, and fetching a single image."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from scaledyolo.errors import SourceError, nearest
from scaledyolo.images import reason_of

# The schemes that FFmpeg is handed; its others (concat:, subfile:, ...) open local files behind the user's back.
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "http", "https")
FETCH_TIMEOUT_SECONDS = 20.0
_MAX_FETCH_BYTES = 1 << 29
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(text: str) -> bool:
    """Whether the text starts with ``scheme://``."""
    return _SCHEME.match(text) is not None


def require_known_scheme(url: str) -> None:
    """Raise SourceError when the scheme of a URL is not one of ``STREAM_SCHEMES``."""
    scheme = url.split("://", 1)[0].lower()
    if scheme not in STREAM_SCHEMES:
        raise SourceError(
            f"{without_password(url)} has the unknown scheme {scheme!r}; known are {', '.join(STREAM_SCHEMES)}."
            + nearest(scheme, STREAM_SCHEMES)
        )


def url_suffix(url: str) -> str:
    """Suffix of the file that a URL names, in lower case, without query: ``.mp4``."""
    return PurePosixPath(unquote(urlsplit(url).path)).suffix.lower()


def without_password(url: str) -> str:
    """The URL as it may appear in messages and results: cameras are often addressed as user:password@host."""
    return re.sub(r"(://[^/?#@:]*):[^/?#]*@", r"\1:***@", url)  # up to the last @: a password may hold one


def relative_of_url(url: str) -> PurePosixPath:
    """Place of a URL's results: host, then the path, without anything that leads out of a folder."""
    parts = urlsplit(url)
    steps = [step for step in unquote(parts.path).split("/") if step not in ("", ".", "..")]
    return PurePosixPath(parts.hostname or "stream", *steps)


def fetch(url: str, *, timeout: float = FETCH_TIMEOUT_SECONDS) -> bytes:
    """Content of an http(s) URL, at most 512 MiB; raises SourceError when the server does not deliver."""
    name = without_password(url)
    request = urllib.request.Request(url, headers={"User-Agent": "scaledyolo"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            data: bytes = response.read(_MAX_FETCH_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"{name} cannot be fetched: the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        reason = error.reason if isinstance(error.reason, BaseException) else error
        raise SourceError(f"{name} cannot be fetched: {reason_of(reason)}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SourceError(f"{name} cannot be fetched: {reason_of(error)}") from error
    if len(data) > _MAX_FETCH_BYTES:
        raise SourceError(f"{name} is larger than {_MAX_FETCH_BYTES >> 20} MiB, too much for one image")
    return data
