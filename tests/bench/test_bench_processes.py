"""Processes: what they say, how they fail, how much memory they held; darknet by a stand-in that speaks like it."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Conv, Detect
from scaledyolo.bench.darknet import DarknetProcess, predicted_ms
from scaledyolo.bench.jobs import CopyJob, GemmJob, Job, NetworkJob, OpenCvJob, ProfileJob, read_job, write_job
from scaledyolo.bench.process import CandidateError, Child, Worker

NETWORK = NetworkJob(("a.cfg", "a.weights"), "openvino", "cpu", "float32", 96, 128, 2, None, image="x.jpg")
GRAPH = Graph(
    "one",
    (
        Node("out", Conv(8, kernel=1, norm=False, bias=True), (Graph.INPUT,)),
        Node("head", Detect(((8.0, 8.0),), (0,), num_classes=3), ("out",)),
    ),
    height=8,
    width=8,
)
# What AlexeyAB's darknet does in `detector test` without an image: load, ask, predict, say, ask again.
STAND_IN = """
    #!{python}
    import sys
    assert sys.argv[1:3] == ["detector", "test"] and sys.argv[-1] == "-dont_show", sys.argv
    print("layer   filters  size/strd(dil)      input                output")
    milliseconds = 40.0
    while True:
        print("Enter Image Path: ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        print(f" Detection layer: 30 - type = 28 \\n{{line.strip()}}: Predicted in {{milliseconds:f}} milli-seconds.")
        milliseconds += 1
"""


def program(folder: Path, text: str) -> str:
    path = folder / "darknet"
    path.write_text(textwrap.dedent(text).format(python=sys.executable).lstrip())
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "job",
    [
        NETWORK,
        OpenCvJob(("a.onnx",), 96, 96, 1, 2),
        GemmJob("numpy", "cpu", "float32", 1),
        CopyJob(2),
        ProfileJob(NETWORK, 3),
    ],
)
def test_jobs_travel_as_one_line(job: Job) -> None:
    line = write_job(job)
    assert "\n" not in line
    assert read_job(line) == job


def test_a_worker_measures_itself_and_tells_its_memory() -> None:
    worker = Worker(CopyJob(1), threads=1)
    try:
        assert worker.facts == {"bytes": 2 * (128 << 20)}
        assert worker.sample()["ms"] > 0
        peak = worker.peak_mb()
        assert peak is None or peak > 2 * 128  # two arrays of 128 MiB
    finally:
        worker.close()
        worker.close()


def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(CandidateError, match="nowhere.safetensors: no such file"):
        Worker(NetworkJob(("nowhere.safetensors",), "onnxruntime", "cpu", "float32", 96, 96, 1, 1), threads=1)


def test_a_precision_that_an_engine_does_not_have_is_refused() -> None:
    with pytest.raises(CandidateError, match="NumPy multiplies in float32, not in bfloat16"):
        Worker(GemmJob("numpy", "cpu", "bfloat16", 1), threads=1)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; sys.exit('no such thing')", "ended with code 1: no such thing"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9, probably for want of memory"),
    ],
)
def test_why_a_program_ended(code: str, told: str) -> None:
    child = Child([sys.executable, "-c", code], threads=1)
    assert child.output.read() == ""
    assert told in str(child.ended())
    child.close()


def test_peak_memory_counts_what_was_given_back() -> None:
    code = "import sys; x = b'1' * (200 << 20); del x; print('done', flush=True); sys.stdin.readline()"
    child = Child([sys.executable, "-c", code], threads=1)
    try:
        assert child.output.readline() == "done\n"
        peak = child.peak_mb()
        assert peak is None or 200 < peak < 300
    finally:
        child.close()


def test_the_number_of_threads_reaches_the_process() -> None:
    code = "import os; print(os.environ['OMP_NUM_THREADS'], flush=True)"
    child = Child([sys.executable, "-c", code], threads=7)
    assert child.output.readline() == "7\n"
    child.close()


def test_what_darknet_prints() -> None:
    assert predicted_ms("data/dog.jpg: Predicted in 412.345000 milli-seconds.\n") == 412.345
    assert predicted_ms("data/dog.jpg: Predicted in 0.412000 seconds.\n") == pytest.approx(412.0)
    assert predicted_ms("Cannot load image") is None


def test_darknet_is_timed_by_its_own_words(tmp_path: Path) -> None:
    darknet = DarknetProcess(
        program(tmp_path, STAND_IN),
        tmp_path / "net.cfg",
        tmp_path / "net.weights",
        tmp_path / "image.jpg",
        GRAPH,
        threads=1,
        folder=tmp_path / "work",
    )
    try:
        assert [darknet.sample()["ms"] for _ in range(3)] == [40.0, 41.0, 42.0]
        assert darknet.facts["engine"] == "darknet"
        assert (tmp_path / "work" / "bench.names").read_text().split() == ["class0", "class1", "class2"]
    finally:
        darknet.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "is not a program that can be run; give the path of a darknet binary"),
        ("#!{python}\nprint('usage: something else')", "does not ask for images"),
        ("#!{python}\nraise SystemExit('Couldn\\'t open file: net.cfg')", "Couldn't open file: net.cfg"),
        (
            "#!{python}\nimport os, sys\nprint('no display', file=sys.stderr, flush=True)\nos.abort()",
            "signal 6: no display",
        ),
        ("#!/nowhere/python\n", "cannot be started"),
    ],
)
def test_a_darknet_that_is_none(text: str | None, told: str, tmp_path: Path) -> None:
    binary = str(tmp_path / "missing") if text is None else program(tmp_path, text)
    with pytest.raises(CandidateError, match=told):
        DarknetProcess(
            binary,
            tmp_path / "net.cfg",
            tmp_path / "net.weights",
            tmp_path / "image.jpg",
            GRAPH,
            threads=1,
            folder=tmp_path / "work",
        )
