"""Every error that the package raises on purpose.

ScaledYoloError            one sentence: what, where, what to do; the CLI prints it and exits with 2
├── SpecError              a network that cannot exist: names the node and the shapes
├── FormatError            a file that is not what it claims to be: names file and place
│   ├── CfgError           a Darknet cfg: names file and line
│   ├── WeightsError       a weight file that does not fit its network: bytes expected and found
│   └── CheckpointError    a damaged or mismatching checkpoint
├── ConversionError        a conversion that cannot be exact, with the reason
├── SourceError            an image, video or stream that cannot be read
├── OutputError            a result that cannot be written; what was there before is unchanged
├── DataError              a data set that cannot be used: names file and line
├── DownloadError          a download that failed or was not what was promised
├── MissingPackageError    an optional package is needed: names the pip extra
└── UsageError             an option or value that makes no sense: names the nearest that does
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScaledYoloError(Exception):
    """Base of all errors raised on purpose; its text is one sentence meant for the user."""


class SpecError(ScaledYoloError):
    """A network description that breaks a shape or naming rule."""


class FormatError(ScaledYoloError):
    """A file whose content is not in the format it claims."""


class CfgError(FormatError):
    """A Darknet cfg that cannot be understood."""


class WeightsError(FormatError):
    """A weight file that does not fit its network."""


class CheckpointError(FormatError):
    """A checkpoint that is damaged or belongs to another network."""


class ConversionError(ScaledYoloError):
    """A conversion that cannot be exact."""


class SourceError(ScaledYoloError):
    """An image, video or stream that cannot be read."""


class OutputError(ScaledYoloError):
    """A result that cannot be written."""


class DataError(ScaledYoloError):
    """A data set that cannot be used as it is."""


class DownloadError(ScaledYoloError):
    """A download that failed or whose content was not what was promised."""


class MissingPackageError(ScaledYoloError):
    """An optional package is needed for what was asked."""


class UsageError(ScaledYoloError):
    """An option or value that does not exist or makes no sense."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun, for sentences; ``many`` is the plural where it is not ``one`` with an s.

    >>> counted(1, "image"), counted(2000, "image"), counted(0, "class", "classes")
    ('1 image', '2,000 images', '0 classes')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known word nearest to ``word``, or an empty string.

    >>> nearest("yolov4-csq", ["yolov4-csp", "yolov3"])
    " Did you mean 'yolov4-csp'?"
    >>> nearest("modle", ["mode", "model"])  # letters in another order: the commonest slip
    " Did you mean 'model'?"
    """
    known = list(known)
    swapped = [other for other in known if sorted(other) == sorted(word)]
    matches = swapped or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
