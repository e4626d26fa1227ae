"""What is OpenVINO's own: pinned precision, compiled shapes, the cache on disk, silence on the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.engines import choose_engine, compiled_cache, describe_engine, open_engine
from scaledyolo.engines.base import side_by_side
from scaledyolo.engines.compiled_cache import CompiledCache, network_digest
from scaledyolo.engines.faithful import TOLERANCE, bfloat16_error, probe_image, relative_error
from scaledyolo.errors import FormatError, UsageError
from scaledyolo.weights import Weights, random_weights

pytest.importorskip("openvino")

from scaledyolo.engines.openvino import (
    MAX_SHAPES,
    OpenVinoEngine,
    available_precisions,
)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return lower(ZOO["yolov4-tiny"])


@pytest.fixture(scope="module")
def weights(graph: Graph) -> Weights:
    return random_weights(graph, np.random.default_rng(3))


@pytest.fixture(scope="module")
def engine(graph: Graph, weights: Weights) -> OpenVinoEngine:
    return OpenVinoEngine.from_graph(graph, weights, threads=1)


@pytest.fixture(scope="module")
def onnx_run(graph: Graph, weights: Weights) -> onnxruntime.InferenceSession:
    """The same network in another runtime."""
    return onnxruntime.InferenceSession(to_onnx(graph, weights, batch=None, dynamic=True).SerializeToString())


def images_of(batch: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 3, height, width), np.float32)


def needs_bfloat16() -> pytest.MarkDecorator:
    return pytest.mark.skipif("bfloat16" not in available_precisions(), reason="this processor lacks bfloat16")


def test_float32_is_float32(engine: OpenVinoEngine, onnx_run: onnxruntime.InferenceSession) -> None:
    """On processors with bfloat16 the runtime's own default is a thousand times less exact than this."""
    images = images_of(2)
    expected = onnx_run.run(None, {"images": images})
    assert relative_error(engine.run(images), expected) < 1e-5
    assert engine.precision == "float32"


@needs_bfloat16()
def test_bfloat16_is_bfloat16(graph: Graph, weights: Weights, onnx_run: onnxruntime.InferenceSession) -> None:
    half = open_engine("openvino", graph, weights, device="cpu", half=True)
    images = images_of(1)
    error = relative_error(half.run(images), onnx_run.run(None, {"images": images}))
    assert 1e-4 < error < TOLERANCE  # eight bits of mantissa leave a trace, and no more than that
    assert half.precision == "bfloat16"
    assert "in bfloat16" in describe_engine(half)


def test_more_shapes_than_are_kept(graph: Graph, weights: Weights, onnx_run: onnxruntime.InferenceSession) -> None:
    engine = OpenVinoEngine.from_graph(graph, weights, threads=1)
    shapes = [(1, 32, 32 * columns) for columns in range(1, MAX_SHAPES + 3)] + [(1, 32, 32), (3, 64, 32)]
    for batch, height, width in shapes:
        images = images_of(batch, height, width, seed=width)
        assert relative_error(engine.run(images), onnx_run.run(None, {"images": images})) < 1e-5
    assert len(engine._compiled) == MAX_SHAPES


def test_threads_share_an_engine(engine: OpenVinoEngine) -> None:
    """Requests are not shared, nor are results overwritten by a later run."""
    batches = [images_of(1, seed=seed) for seed in range(12)]
    alone = [[raw.copy() for raw in engine.run(images)] for images in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine.run, batches))
    for found, expected in zip(together, alone, strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_prepared_shape_is_not_compiled_again(
    graph: Graph, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OpenVinoEngine.from_graph(graph, weights, threads=1)
    images = images_of(2)
    expected = engine.run(images)
    prepared = OpenVinoEngine.from_graph(graph, weights, threads=1)
    prepared.prepare(2, *images.shape[2:])
    monkeypatch.setattr(prepared, "_compile", lambda shape: pytest.fail(f"{shape} is compiled again"))
    prepared.prepare(2, *images.shape[2:])
    for found, wanted in zip(prepared.run(images), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_throughput_mode_gives_the_same(graph: Graph, weights: Weights, engine: OpenVinoEngine) -> None:
    other = OpenVinoEngine.from_graph(graph, weights, mode="throughput")
    assert relative_error(other.run(images_of(3)), engine.run(images_of(3))) < 1e-5


def test_side_by_side_shares_the_network_but_not_what_is_compiled(
    graph: Graph, weights: Weights, engine: OpenVinoEngine, tmp_path: Path
) -> None:
    cache, key, images = CompiledCache(tmp_path), network_digest(graph, weights), images_of(2)
    first = OpenVinoEngine.from_graph(graph, weights, cache_key=key, cache=cache)
    several = side_by_side(first)
    assert (first.mode, several.mode, several.precision) == ("latency", "throughput", "float32")
    assert side_by_side(several) is several
    with ThreadPoolExecutor(3) as pool:  # each mode is compiled at its first run, here both at once
        found = list(pool.map(lambda one: one.run(images), [first, several, several, first]))
    for maps in found:
        assert relative_error(maps, engine.run(images)) < 1e-5
    assert len(list(tmp_path.iterdir())) == 2  # each mode is kept on disk for itself


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat61"}, "Did you mean 'bfloat16'"),
        ({"mode": "latencies"}, "Did you mean 'latency'"),
        ({"device": "cpus"}, "Did you mean 'cpu'"),
        ({"threads": 0}, "0 threads"),
    ],
)
def test_wrong_options(graph: Graph, weights: Weights, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OpenVinoEngine.from_graph(graph, weights, **options)  # type: ignore[arg-type]


def test_what_is_no_model(tmp_path: Path) -> None:
    for model in (b"nonsense", tmp_path / "missing.xml"):
        with pytest.raises(FormatError):
            OpenVinoEngine(model)
    (tmp_path / "damaged.xml").write_text("<net")
    with pytest.raises(FormatError, match="damaged.xml"):
        OpenVinoEngine(tmp_path / "damaged.xml")


# -- the cache ---------------------------------------------------------------------------------------------------------


def refuse() -> bytes:
    raise AssertionError("the model was needed")


def test_a_cached_model_needs_no_source(graph: Graph, weights: Weights, tmp_path: Path) -> None:
    cache, key, images = CompiledCache(tmp_path), network_digest(graph, weights), images_of(1)
    first = OpenVinoEngine.from_graph(graph, weights, cache_key=key, cache=cache)
    expected = first.run(images)
    assert len(list(tmp_path.iterdir())) == 1
    second = OpenVinoEngine(refuse, cache_key=key, cache=cache)
    assert relative_error(second.run(images), expected) < 1e-6
    with pytest.raises(AssertionError, match="was needed"):  # another shape, precision or number of threads is another
        OpenVinoEngine(refuse, cache_key=key, cache=cache).run(images_of(2))
    with pytest.raises(AssertionError, match="was needed"):
        OpenVinoEngine(refuse, cache_key=key, cache=cache, threads=1).run(images)


@needs_bfloat16()
def test_precision_of_a_cached_model_stays_pinned(
    graph: Graph, weights: Weights, tmp_path: Path, onnx_run: onnxruntime.InferenceSession
) -> None:
    """A compiled model that is read back without options computes in bfloat16, whatever it was compiled for."""
    cache, key, images = CompiledCache(tmp_path), network_digest(graph, weights), images_of(1)
    OpenVinoEngine.from_graph(graph, weights, cache_key=key, cache=cache).run(images)
    again = OpenVinoEngine(refuse, cache_key=key, cache=cache)
    assert relative_error(again.run(images), onnx_run.run(None, {"images": images})) < 1e-5


def test_damaged_cache_files_are_replaced(graph: Graph, weights: Weights, tmp_path: Path) -> None:
    cache, key, images = CompiledCache(tmp_path), network_digest(graph, weights), images_of(1)
    expected = OpenVinoEngine.from_graph(graph, weights, cache_key=key, cache=cache).run(images)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    found = OpenVinoEngine.from_graph(graph, weights, cache_key=key, cache=cache).run(images)
    assert relative_error(found, expected) < 1e-6
    assert file.read_bytes() != content


def test_one_weight_more_is_another_key(graph: Graph, weights: Weights) -> None:
    changed = dict(weights)
    name = next(iter(changed))
    changed[name] = changed[name].copy()
    changed[name].flat[0] = np.nextafter(changed[name].flat[0], np.float32(9))
    assert network_digest(graph, changed) != network_digest(graph, weights)
    assert network_digest(graph.with_size(64, 64), weights) != network_digest(graph, weights)


def test_the_cache_has_a_limit(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path, max_bytes=1000)
    for number in range(3):
        assert cache.store(f"blob{number}", bytes(250))
        os.utime(tmp_path / f"blob{number}", (number, number))
    assert cache.load("blob0") is not None  # used now, so no longer the oldest
    assert cache.store("blob3", bytes(250))
    assert {item.name for item in tmp_path.iterdir()} == {"blob0", "blob2", "blob3"}
    assert not cache.store("large", bytes(2000))


def test_a_cache_that_cannot_be_written_is_no_error(graph: Graph, weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = CompiledCache(tmp_path / "file" / "below")
    engine = OpenVinoEngine.from_graph(graph, weights, cache_key="key", cache=cache)
    assert len(engine.run(images_of(1))) == 2


def test_the_cache_depends_on_all_code_that_writes_models() -> None:
    package = Path(compiled_cache.__file__).parents[1]
    text = "".join((package / name).read_text(encoding="utf-8") for name in compiled_cache._WRITERS)
    read = set(re.findall(r"^from scaledyolo\.((?:arch|convert)\.\w+) import", text, re.MULTILINE))
    data = {"arch/graph.py"}  # what a graph is goes into the key itself
    assert {f"{name.replace('.', '/')}.py" for name in read} <= {*compiled_cache._WRITERS, *data}


# -- fewer bits --------------------------------------------------------------------------------------------------------


class _Shifted:
    """A stand-in whose maps are off by a share of their spread."""

    def __init__(self, shift: float) -> None:
        self._shift = shift

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        maps = np.random.default_rng(0).standard_normal((1, 4, 64, 64)).astype(np.float32)
        return [maps + np.float32(self._shift)]


def test_bfloat16_is_measured_once_and_remembered(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path)
    shifts = {"bfloat16": 0.01, "float32": 0.0}
    error = bfloat16_error(
        "network",
        lambda precision: _Shifted(shifts[precision]),  # type: ignore
        lambda: probe_image(3, 32),
        cache,
    )
    assert error == pytest.approx(0.01, rel=0.02)
    again = bfloat16_error("network", lambda precision: pytest.fail("again"), lambda: pytest.fail("again"), cache)
    assert again == error


def test_not_a_number_is_not_faithful() -> None:
    maps = [np.asarray([1.0, np.nan], np.float32)]
    assert relative_error(maps, [np.asarray([1.0, 2.0], np.float32)]) == np.inf


@needs_bfloat16()
def test_a_network_that_needs_its_bits_keeps_them(graph: Graph, weights: Weights) -> None:
    """Half precision by measurement: fine for well-conditioned weights, refused where large values cancel."""
    assert open_engine("auto", graph, weights, device="cpu", half=None).precision == "bfloat16"
    head = graph.heads[0].inputs[0]
    fragile = dict(weights)
    source = graph[head].inputs[0]
    fragile[f"{source}.norm.bias"] = weights[f"{source}.norm.bias"] + np.float32(300)
    assert open_engine("auto", graph, fragile, device="cpu", half=None).precision == "float32"


def test_the_choice_has_a_reason() -> None:
    choice = choose_engine("auto", "cpu")
    assert choice.engine == "openvino"
    assert "fastest" in choice.why
    assert choose_engine("auto", "npu").engine == "openvino"
    assert choose_engine("torch").why == "it was asked for"


# -- silence -----------------------------------------------------------------------------------------------------------

_SILENT = """
import sys, time

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        print("tried to reach the network:", event, arguments, file=sys.stderr)
        sys.stderr.flush()
        import os
        os._exit(3)

sys.addaudithook(watch)
from scaledyolo.engines.openvino import available_devices, import_openvino
assert "cpu" in available_devices()
assert "openvino_telemetry" not in sys.modules
assert callable(import_openvino().convert_model), "the rest of the package is whole"
time.sleep(0.5)  # the report would be sent by a thread
"""


def test_importing_openvino_sends_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("CI", None)  # there the sender keeps quiet by itself
    result = subprocess.run(
        [sys.executable, "-c", _SILENT], capture_output=True, text=True, timeout=60, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir()), "no identifier of the user was stored either"
