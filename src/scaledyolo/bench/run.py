"""The benchmark: everybody who runs a network at one size and batch, in turns, beside a matrix product."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaledyolo.bench.entrants import Entrant, Gemms, Setting, check_engines, entrants, read_precisions
from scaledyolo.bench.networks import Network, open_networks
from scaledyolo.bench.rounds import Effort, measure
from scaledyolo.bench.rows import Row
from scaledyolo.bench.timing import Interrupted, check_rounds
from scaledyolo.errors import SourceError, UsageError
from scaledyolo.host import physical_cores

_Part = tuple[Network, int, int, int]  # with height, width and batch
_PICTURE: Final = (480, 640)  # height and width of the picture that is made where none is given


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure and how."""

    engines: tuple[str, ...] = ("all",)
    precisions: tuple[str, ...] = ()  # none: what each engine computes natively
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width); none: each network's own
    batches: tuple[int, ...] = (1,)
    device: str = "cpu"
    threads: int | None = None  # None: the physical cores that this process may use
    rounds: int = 30
    warmup: int = 3
    seconds: float | None = None  # for the rounds of one network at one size and batch
    end_to_end: bool = False
    layers: bool = False
    together: bool = False  # all networks in the same rounds; they are all in memory then
    image: Path | None = None  # None: a picture is made
    darknet: str | None = None  # a binary


def bench(models: Sequence[str], options: Options, tell: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Measure networks.

    Args:
        models: as on the command line: zoo names, checkpoints, ``x.cfg x.weights``, exported files.
        options: what to measure and how.
        tell: is told what is being measured.

    Returns:
        One row for each way to run each network; one that failed says why.

    Raises:
        ScaledYoloError: a model, size, engine, precision or image that does not exist: nothing was measured.
        Interrupted: by Ctrl-C; has the list of rows that could be had until then.
    """
    check_engines(options.engines, options.device)
    check_rounds(options.rounds, options.warmup)
    precisions = read_precisions(options.precisions)
    if min(options.batches, default=0) < 1:
        raise UsageError("a batch has one image or more")
    threads = physical_cores() if options.threads is None else options.threads
    if threads < 1:
        raise UsageError(f"{threads} threads make no sense; use 1 or more")
    effort = Effort(options.rounds, options.warmup, options.seconds)
    heats = _heats(open_networks(models), options)
    rows: list[Row] = []
    try:
        for measured in _run_heats(heats, options, precisions, threads, effort, tell):
            rows += measured
    except Interrupted as stop:
        raise Interrupted(rows + stop.measured) from None
    except KeyboardInterrupt:
        raise Interrupted(rows) from None
    return rows


def _run_heats(
    heats: Sequence[Sequence[_Part]],
    options: Options,
    precisions: Sequence[str],
    threads: int,
    effort: Effort,
    tell: Callable[[str], None],
) -> Iterator[list[Row]]:
    """The rows of one heat after the other."""
    with tempfile.TemporaryDirectory(prefix="scaledyolo-bench-") as temporary, ExitStack() as stack:
        image = _picture(options.image, Path(temporary))
        gemms = stack.enter_context(contextlib.closing(Gemms(options.device, threads)))
        for heat, parts in enumerate(heats):
            tell(", ".join(f"{network.name} at {height}x{width}" for network, height, width, _ in parts))
            with tempfile.TemporaryDirectory(dir=temporary) as own:  # weights can be large: no longer than needed
                who: list[Entrant] = []
                for number, (network, height, width, batch) in enumerate(parts):
                    folder = Path(own) / str(number)
                    folder.mkdir()
                    ready = network.written(folder)
                    setting = Setting(ready, height, width, batch, threads, options.device, image, folder)
                    who += entrants(
                        setting, options.engines, precisions, end_to_end=options.end_to_end, darknet=options.darknet
                    )
                yield measure(who, gemms, effort, layers=options.layers, heat=heat)


def _heats(networks: Sequence[Network], options: Options) -> list[list[_Part]]:
    """What is measured in the same rounds: one network at one size and batch, or all networks together.

    Raises:
        SpecError: a network cannot take a size.
    """
    sizes = options.sizes or (None,)
    fields = [networks] if options.together else [[network] for network in networks]
    return [
        [(network, *network.at(size), batch) for network in field]
        for field in fields
        for size, batch in itertools.product(sizes, options.batches)
    ]


def _picture(image: Path | None, folder: Path) -> Path:
    """The picture for those who start from a file: the user's, or a made one with edges, gradients and noise."""
    from scaledyolo.sources import read_image

    if image is not None:
        read_image(image)
        return image.resolve()
    import cv2

    from scaledyolo.engines.faithful import scene

    pixels = (255 * scene(3, *_PICTURE, seed=0)).round().astype("uint8").transpose(1, 2, 0)
    path = folder / "picture.jpg"
    if not cv2.imwrite(str(path), pixels):
        raise SourceError(f"{path} cannot be written; give a picture with --image")
    return path
