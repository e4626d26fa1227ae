"""The model that comes with the package, so that the first command finds objects without a download.

What a name means, wherever a model may be named:

``default``      this model: the same on every machine, whatever was downloaded
``yolov4-tiny``  the name of its network. Official weights take precedence where they were downloaded or are to be;
                 else it is this model, with a notice

The environment variable ``SCALEDYOLO_DEFAULT_MODEL`` puts a checkpoint of one's own in its place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from scaledyolo.errors import UsageError

DEFAULT: Final = "default"
NETWORK: Final = "yolov4-tiny"
SHIPPED_FILE: Final = Path(__file__).parent / "models" / "default.safetensors"
VARIABLE: Final = "SCALEDYOLO_DEFAULT_MODEL"
TITLE_KEY: Final = "title"  # of the provenance: the model in a few words


def default_model_file() -> Path:
    """Where the default model lies.

    Raises:
        UsageError: this copy of the package came without it.
    """
    path = _file()
    if path.is_file():
        return path
    if VARIABLE in os.environ:
        raise UsageError(f"{path}: no such file, though {VARIABLE} says that the default model lies there")
    raise UsageError(
        f"this copy of scaledyolo came without its default model ({path.name} is missing); name a model with --model, "
        f"or fetch official weights: --model {NETWORK} --download"
    )


def has_default_model() -> bool:
    """Whether :func:`default_model_file` is to be asked: this copy came with one, or the user named one."""
    return VARIABLE in os.environ or SHIPPED_FILE.is_file()


def stands_in_for(network: str) -> bool:
    """Whether the default model can take the place of official weights of this name that are not there."""
    return network == NETWORK and _file().is_file()


def _file() -> Path:
    own = os.environ.get(VARIABLE)
    return Path(own).expanduser() if own else SHIPPED_FILE
