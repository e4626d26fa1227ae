"""The arithmetic of a row by numbers that can be checked in the head."""

from __future__ import annotations

import io
import json

import pytest

from scaledyolo.bench.report import engine_label, network_label, notes, number, percent
from scaledyolo.bench.rows import Row, measured

BLANK = Row(model="net", size=(416, 416), batch=4, engine="openvino", precision="bfloat16")


def test_rates_and_share_of_the_peak() -> None:
    row = measured(BLANK, [{"ms": 100.0}, {"ms": 300.0}, {"ms": 200.0}], gflop=5.0, peak_gflops=400.0)
    assert (row.median_ms, row.p95_ms, row.rounds) == (200.0, pytest.approx(290.0), 3)
    assert row.noise == pytest.approx(0.5)  # quartiles at 150 and 250
    assert row.images_per_s == pytest.approx(20.0)  # 4 images in 0.2 s
    assert row.gflops == pytest.approx(100.0)  # 4 x 5 GFLOP in 0.2 s
    assert row.peak_share == pytest.approx(0.25)
    assert row.stages is None
    assert row.detections is None


def test_end_to_end_has_stages_and_no_share_of_the_peak() -> None:
    samples = [{"ms": ms, "stages": {"read": ms / 2, "network": ms / 4}, "detections": 7} for ms in (10.0, 30.0, 20.0)]
    row = measured(Row(**{**_values(BLANK), "end_to_end": True}), samples, gflop=5.0, peak_gflops=400.0)
    assert row.stages == {"read": 10.0, "network": 5.0}
    assert row.detections == 7
    assert row.gflops is row.peak_share is None


def test_what_is_not_known_stays_open() -> None:
    row = measured(BLANK, [{"ms": 10.0}], gflop=None, peak_gflops=None)
    assert row.gflops is row.peak_share is row.gflop is None
    assert row.images_per_s == pytest.approx(400.0)


def test_a_row_is_plain_json_with_the_promised_names() -> None:
    document = json.loads(json.dumps(measured(BLANK, [{"ms": 10.0}], 1.0, 2.0).to_dict()))
    promised = "model size batch engine version precision median_ms p95_ms images_per_s peak_mb end_to_end"
    assert set(promised.split()) <= set(document)
    assert document["size"] == [416, 416]


def test_labels() -> None:
    assert network_label(BLANK) == "net 416, batch 4"
    assert network_label(Row(**{**_values(BLANK), "size": (384, 640), "batch": 1})) == "net 384x640"
    assert engine_label(Row(**{**_values(BLANK), "version": "2026.4", "device": "gpu"})) == "openvino 2026.4 bf16 gpu"
    assert (number(None), number(12345.678), number(1.5, 0)) == ("-", "12,345.7", "2")
    assert (percent(None), percent(0.256)) == ("-", "26 %")


def test_notes_say_what_failed_and_that_the_machine_was_busy() -> None:
    noisy = measured(BLANK, [{"ms": 10.0}, {"ms": 20.0}, {"ms": 30.0}], 1.0, 800.0)
    failed = Row(**{**_values(BLANK), "engine": "torch", "error": "the torch engine needs torch"})
    told = notes([noisy, failed])
    assert any("not measured" in line and "needs torch" in line for line in told)
    assert any("busy" in line for line in told)
    assert any("bf16 800" in line for line in told)
    assert not any("busy" in line for line in notes([measured(BLANK, [{"ms": 10.0}] * 3, None, None)]))


def _values(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.__dataclass_fields__}


def test_ratios_are_to_the_fastest_of_the_same_heat() -> None:
    from rich.console import Console

    from scaledyolo.bench.report import print_report

    def timed(engine: str, ms: float, heat: int) -> Row:
        return measured(Row(**{**_values(BLANK), "engine": engine, "heat": heat}), [{"ms": ms}] * 3, None, None)

    written = io.StringIO()
    print_report(
        [timed("fast", 10.0, 0), timed("slow", 25.0, 0), timed("fast", 50.0, 1)], Console(width=160, file=written)
    )
    lines = [line.split() for line in written.getvalue().splitlines() if "bf16" in line]
    assert [(line[0], line[7]) for line in lines] == [("fast", "1.00"), ("slow", "2.50"), ("fast", "1.00")]
