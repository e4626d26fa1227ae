"""Where pictures come from: files, folders, patterns, lists, videos, cameras and streams become frames.

    for frame in Prefetch(open_source("photographs/")):
        ...

Contents: ``open_source`` decides what an argument means; ``Frame`` is what every source yields;
``read_image`` reads one file; ``Prefetch`` decodes ahead in a thread.
"""

from __future__ import annotations

from scaledyolo.sources.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FileSource
from scaledyolo.sources.frame import Frame, FrameSource, Origin, SourceKind
from scaledyolo.sources.image_reader import MAX_PIXELS, read_image
from scaledyolo.sources.live import LiveStream, Reconnect
from scaledyolo.sources.opening import open_source
from scaledyolo.sources.prefetch import Prefetch
from scaledyolo.sources.video import VideoFile

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "VIDEO_SUFFIXES",
    "FileSource",
    "Frame",
    "FrameSource",
    "LiveStream",
    "Origin",
    "Prefetch",
    "Reconnect",
    "SourceKind",
    "VideoFile",
    "open_source",
    "read_image",
]
