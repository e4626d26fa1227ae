"""The rival from which the family comes: a darknet binary, timed by what it prints itself.

``darknet detector test`` asks for images one after another and prints for each how long its network took, without
loading, resizing and drawing; so the network stays loaded and every image is one sample.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from scaledyolo.arch.graph import Graph
from scaledyolo.bench.process import CandidateError, Child

_PREDICTED: Final = re.compile(r"Predicted in ([0-9.]+) (milli-)?seconds")
_PROMPT: Final = "Enter Image Path:"


def predicted_ms(text: str) -> float | None:
    """Milliseconds that darknet says a prediction took; None where it says nothing of the kind.

    AlexeyAB's fork prints milli-seconds, the original seconds.
    """
    found = _PREDICTED.search(text)
    if found is None:
        return None
    return float(found[1]) * (1.0 if found[2] else 1e3)


class DarknetProcess:
    """A running ``darknet detector test``.

    Args:
        binary: path of the program, or its name.
        cfg: of the network; its size is the one that is measured.
        weights: of the network.
        image: that it is shown.
        graph: the network.
        threads: for OpenMP, where the binary was built with it.
        folder: an empty one; darknet writes its files there.

    Raises:
        CandidateError: there is no such program, or it is not darknet.
    """

    def __init__(
        self, binary: str, cfg: Path, weights: Path, image: Path, graph: Graph, *, threads: int, folder: Path
    ) -> None:
        program = shutil.which(binary)
        if program is None:
            raise CandidateError(f"{binary} is not a program that can be run; give the path of a darknet binary")
        folder.mkdir(parents=True, exist_ok=True)
        names, data = folder / "bench.names", folder / "bench.data"
        names.write_text("\n".join(f"class{number}" for number in range(graph.num_classes)) + "\n")
        data.write_text(f"classes={graph.num_classes}\nnames={names}\n")
        command = [str(Path(program).resolve()), "detector", "test", str(data), str(cfg), str(weights)]
        self._child = Child([*command, "-dont_show"], threads=threads, folder=folder)
        self._image = image
        self.facts: Mapping[str, Any] = {"engine": "darknet", "version": "", "device": "cpu", "note": "times itself"}
        try:
            self._read_until_prompt()
        except BaseException:
            self.close()
            raise

    def sample(self) -> Mapping[str, Any]:
        """Show it the image once; see :class:`~scaledyolo.bench.process.Process`."""
        self._child.say(str(self._image))
        told = self._read_until_prompt()
        ms = predicted_ms(told)
        if ms is None:
            raise CandidateError(f"darknet did not say how long it took, but {told.strip()[-80:]!r}")
        return {"ms": ms}

    def peak_mb(self) -> float | None:
        """The most memory so far."""
        return self._child.peak_mb()

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _read_until_prompt(self) -> str:
        """What darknet says before it asks for the next image; the prompt ends without a line break."""
        told = ""
        while not told.endswith(_PROMPT):
            character = self._child.output.read(1)
            if not character:
                error = self._child.ended()
                raise CandidateError(f"darknet does not ask for images as `detector test` does; {error}")
            told += character
        return told
