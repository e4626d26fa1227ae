"""The command line: verbs that parse, call and print. Nothing is imported before its verb is chosen."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scaledyolo import __version__
from scaledyolo.cli.exit_codes import EXIT_ERROR, EXIT_INTERRUPTED
from scaledyolo.errors import ScaledYoloError, UsageError, nearest

# verb: (module below scaledyolo.cli, class in it, one line for the overview)
VERBS: dict[str, tuple[str, str, str]] = {
    "detect": ("detect", "Detect", "find objects in images, folders, videos and streams"),
    "train": ("train", "Train", "train a network on your own images"),
    "doctor": ("doctor", "Doctor", "look at a data set before training on it"),
    "preview": ("preview", "Preview", "show augmented samples as the network will see them"),
    "anchors": ("anchors", "Anchors", "fit anchor boxes to a data set"),
    "recipes": ("recipes", "Recipes", "list the training recipes, or print one"),
    "ablate": ("ablate", "Ablate", "train and measure a grid of networks and recipes side by side"),
    "eval": ("eval", "Eval", "measure a model on a data set and report what goes wrong"),
    "bench": ("bench", "Bench", "measure how fast networks run on this machine, engine by engine"),
    "convert": ("convert", "Convert", "bring Darknet and PyTorch weights to a safe file, or back to Darknet"),
    "export": ("export", "Export", "write a model for another runtime, proven to compute the same"),
    "verify": ("verify", "Verify", "compare an exported model with the model it comes from"),
    "scale": ("scale", "Scale", "find the network for a frame rate or another budget on this machine"),
    "describe": ("describe", "Describe", "print parameters, operations, boxes and strides of a network"),
    "download": ("download", "Download", "fetch official weights by name, verified"),
    "zoo": ("zoo", "Zoo", "list every network by name"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (0 done, 1 some inputs skipped, 2 error, 130 interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _warnings_in_one_line():
            return _run(arguments)
    except ScaledYoloError as error:
        print(f"scaledyolo: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"scaledyolo: interrupted; {str(interrupt) or 'what was done is kept'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        _abandon_output()
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"scaledyolo: {place}{error.strerror or error}", file=sys.stderr)
        _abandon_output()
        return EXIT_ERROR


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show warnings as sentences, without the line of code that they come from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"scaledyolo: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _abandon_output() -> None:
    """Drop what standard output still holds where it cannot be written: Python would try once more, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else EXIT_ERROR
    if arguments[0] in ("-V", "--version"):
        print(f"scaledyolo {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise UsageError(f"there is no verb {verb!r}.{nearest(verb, VERBS)} See `scaledyolo --help`.")
    module, name, summary = VERBS[verb]
    command = getattr(importlib.import_module(f"scaledyolo.cli.{module}"), name)
    from scaledyolo.cli.parsing import parse

    code = int(parse(command, verb, f"{summary[0].upper()}{summary[1:]}.", rest).run() or 0)
    sys.stdout.flush()  # here a full disk or a closed pipe can still be told
    return code


def overview() -> str:
    """The text of `scaledyolo --help`."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{summary}" for verb, (_, _, summary) in VERBS.items())
    return (
        "Object detection with the Scaled-YOLOv4 family.\n\n"
        f"usage: scaledyolo VERB ... | --version\n\n{verbs}\n\n"
        "`scaledyolo VERB --help` explains each."
    )
