"""Pictures from made-up rows: what is drawn is read back from the figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from scaledyolo.arch.roofline import Roof
from scaledyolo.bench.plot import check_plot, draw, plain_log_ticks, roofline_figure, speed_figure
from scaledyolo.bench.roofline import Layer
from scaledyolo.bench.rows import Row
from scaledyolo.errors import OutputError, UsageError


def row(model: str, gflop: float, engine: str, ms: float, *, batch: int = 1, precision: str = "float32") -> Row:
    return Row(
        model=model,
        size=(416, 416),
        batch=batch,
        engine=engine,
        precision=precision,
        median_ms=ms,
        images_per_s=1e3 * batch / ms,
        gflop=gflop,
    )


def layer(name: str, ms: float, gflops: float, intensity: float) -> Layer:
    flops = int(gflops * 1e9 * ms / 1e3)
    bound = "compute" if intensity > 10 else "memory"
    return Layer(name, (name,), {}, ms, ms / 10, flops, int(flops / intensity), gflops, 1.0, intensity, bound, 0.5)


def test_one_network_is_drawn_as_bars_the_fastest_first() -> None:
    rows = [row("a", 7.0, "onnxruntime", 20.0), row("a", 7.0, "openvino", 40.0, batch=4)]
    (axes,) = speed_figure(rows).axes
    assert sorted(bar.get_width() for bar in axes.patches) == [10.0, 20.0]  # milliseconds for each image
    written = [text.get_text() for text in axes.texts]
    assert " 20.0 ms   50.0 images/s" in written
    assert " 10.0 ms   100.0 images/s" in written


def test_many_networks_are_drawn_over_their_capacity() -> None:
    rows = [row(name, size, engine, size * 2) for name, size in (("s", 5), ("m", 50), ("l", 500)) for engine in "xy"]
    figure = speed_figure([*rows, row("s", 5.0, "x", 4.0, precision="bfloat16")])
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"x f32", "y f32", "x bf16"}
    assert list(lines["x f32"].get_xdata()) == [5, 50, 500]
    assert list(lines["x f32"].get_ydata()) == [10, 100, 1000]
    assert {text.get_text() for text in axes.texts} == {"s 416", "m 416", "l 416"}


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ((3.0, 700.0), ["5", "10", "20", "50", "100", "200", "500"]),
        ((0.001, 9000.0), ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]),
        ((3.6, 70.0), ["5", "10", "20", "50"]),
        ((0.65, 0.84), ["0.65", "0.7", "0.75", "0.8"]),
    ],
)
def test_numbers_at_a_logarithmic_axis_are_plain(limits: tuple[float, float], told: list[str]) -> None:
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=limits)
    plain_log_ticks(axes.xaxis)
    assert [label.get_text() for label in axes.get_xticklabels()] == told
    assert not axes.xaxis.get_minorticklocs().size


def test_the_roof_bends_at_its_ridge() -> None:
    layers = [layer("a", 6.0, 80.0, 40.0), layer("b", 4.0, 5.0, 2.0)]
    figure = roofline_figure(row("a", 7.0, "openvino", 10.0), Roof(100e9, 10e9), layers)
    roof = figure.axes[0].lines[0]
    assert list(roof.get_xdata()) == [1.0, 10.0, 80.0]
    assert list(roof.get_ydata()) == [10.0, 100.0, 100.0]
    told = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "1  a  60 %" in told
    assert "2  b  40 %" in told


def test_files_are_written_or_refused(tmp_path: Path) -> None:
    assert draw([row("a", 7.0, "openvino", 10.0)], tmp_path / "x.png") == [tmp_path / "x.png"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"written as .png, .svg, .pdf"):
        check_plot(tmp_path / "x.bmp")
    with pytest.raises(OutputError, match="cannot be written"):
        draw([row("a", 7.0, "openvino", 10.0)], tmp_path / "gone" / "x.png")
