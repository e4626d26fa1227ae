"""Where pictures come from: files, folders, patterns, lists, videos, cameras and streams become frames.

    for frame in open_source("photographs/"):
        ...

Contents: ``open_source`` decides what an argument means; ``Frame`` is what every source yields; ``read_image`` reads
one file, ``rgb_of_pillow`` takes what Pillow holds; ``frames_with_results`` overlaps reading with what is done with the
frames; ``Lanes`` are the threads in which it does so.
"""

from __future__ import annotations

from scaledyolo.images import MAX_PIXELS, read_image, rgb_of_pillow
from scaledyolo.sources.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FileSource
from scaledyolo.sources.frame import Frame, FrameSource, Origin, SourceKind
from scaledyolo.sources.lanes import Lanes
from scaledyolo.sources.live import LiveStream, Reconnect
from scaledyolo.sources.opening import open_source, open_sources
from scaledyolo.sources.pipeline import Mode, frames_with_results, settle_mode
from scaledyolo.sources.video import VideoFile

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "VIDEO_SUFFIXES",
    "FileSource",
    "Frame",
    "FrameSource",
    "Lanes",
    "LiveStream",
    "Mode",
    "Origin",
    "Reconnect",
    "SourceKind",
    "VideoFile",
    "frames_with_results",
    "open_source",
    "open_sources",
    "read_image",
    "rgb_of_pillow",
    "settle_mode",
]
