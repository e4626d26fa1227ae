"""A candidate seen from outside its process: started, asked for samples, watched, ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from scaledyolo.bench.jobs import Job, write_job
from scaledyolo.errors import ScaledYoloError

_SECONDS_TO_END = 10.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class CandidateError(ScaledYoloError):
    """A candidate that could not be measured; says why."""


class Process(Protocol):
    """A candidate in a process of its own."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the candidate says about itself."""

    def sample(self) -> Mapping[str, Any]:
        """One run: ``ms`` and what else it tells.

        Raises:
            CandidateError: it failed or its process ended.
        """

    def peak_mb(self) -> float | None:
        """The most memory that it has held so far, in 2^20 bytes; None where the system does not tell."""

    def close(self) -> None:
        """End the process; may be called twice."""


class Child:
    """Standard streams of another program: lines go in, lines come out, complaints go to a file.

    Raises:
        CandidateError: the program cannot be started.
    """

    def __init__(self, command: list[str], *, threads: int, folder: Path | None = None) -> None:
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=environment,
                cwd=folder,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._complaints.close()
            raise CandidateError(f"{command[0]} cannot be started: {error.strerror or error}") from None

    def say(self, line: str) -> None:
        """Send one line; whether somebody reads it is seen by the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    @property
    def output(self) -> IO[str]:
        """What the program writes."""
        assert self._process.stdout is not None
        return self._process.stdout

    def ended(self) -> CandidateError:
        """Why a program that does not answer has ended."""
        code = self._process.wait()
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints.read().decode(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        said = f": {last}" if last else ""
        if code < 0:
            hint = ", probably for want of memory" if code == -9 else ""
            return CandidateError(f"its process was ended by signal {-code}{hint}{said}")
        return CandidateError(f"its process ended with code {code}{said}")

    def peak_mb(self) -> float | None:
        """``VmHWM``: the most memory that was resident at a time since the program started."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return None

    def close(self) -> None:
        """End the program, kindly first."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()


class Worker:
    """A job in a process of its own; see :mod:`scaledyolo.bench.worker`.

    Raises:
        CandidateError: it cannot be had here; says why.
    """

    def __init__(self, job: Job, *, threads: int) -> None:
        self._child = Child([sys.executable, "-m", "scaledyolo.bench.worker"], threads=threads)
        try:
            self._child.say(write_job(job))
            self.facts: Mapping[str, Any] = self._answer("ready")
        except BaseException:
            self.close()
            raise

    def sample(self) -> Mapping[str, Any]:
        """One run; see :class:`Process`."""
        self._child.say("sample")
        return self._answer("sample")

    def peak_mb(self) -> float | None:
        """The most memory so far; see :class:`Process`."""
        return self._child.peak_mb()

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _answer(self, kind: str) -> Mapping[str, Any]:
        line = self._child.output.readline()
        if not line:
            raise self._child.ended()
        answer = json.loads(line)
        if "error" in answer:
            raise CandidateError(answer["error"])
        return dict(answer[kind])
